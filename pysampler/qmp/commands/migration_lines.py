# SPDX-License-Identifier: MIT
"""The human monitor's lines about migration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pysampler.migration.info import info_lines
from pysampler.migration.settings import AGGRESSION_LEVEL, OWN_PARAMETERS
from pysampler.qemu.migration import PARAMETERS, ParameterType
from pysampler.qmp.commands.definition import Line
from pysampler.qmp.commands.migration_arguments import (
    BITMAP_MAPPING,
    CAPABILITY_NAMES,
    STATUSES,
)
from pysampler.qmp.hmp import HmpLineError, refuse_words, take_options
from pysampler.qmp.hmp_values import size, size_in_mib, switch, unsigned
from pysampler.qmp.wire.messages import QmpError

if TYPE_CHECKING:
    from pysampler.migration.settings import Setting
    from pysampler.qmp.commands.definition import Monitor

# What `info migrate_parameters` shows, in its order, each with the text after its value.
_SHOWN = {
    "announce-initial": " ms",
    "announce-max": " ms",
    "announce-rounds": "",
    "announce-step": " ms",
    "throttle-trigger-threshold": "",
    "cpu-throttle-initial": "",
    "cpu-throttle-increment": "",
    "cpu-throttle-tailslow": "",
    "max-cpu-throttle": "",
    "tls-creds": "",
    "tls-hostname": "",
    "max-bandwidth": " bytes/second",
    "avail-switchover-bandwidth": " bytes/second",
    "downtime-limit": " ms",
    "x-checkpoint-delay": " ms",
    "multifd-channels": "",
    "multifd-compression": "",
    "zero-page-detection": "",
    "xbzrle-cache-size": " bytes",
    "max-postcopy-bandwidth": "",
    "tls-authz": "",
    "x-vcpu-dirty-limit-period": " ms",
    "vcpu-dirty-limit": " MB/s",
    "mode": "",
    "direct-io": "",
    # Of our own: shown once they are set.
    **dict.fromkeys(OWN_PARAMETERS, ""),
}
_IN_MIB = ("max-bandwidth", "avail-switchover-bandwidth")  # without a suffix
# Written as sizes, although one is a time and one a rate.
_LIKE_SIZES = ("downtime-limit", "x-vcpu-dirty-limit-period", "vcpu-dirty-limit")


def _strings(name: str, words: list[str], count: int) -> list[str]:
    """Return the words of a line that takes so many."""
    if len(words) < count:
        raise HmpLineError(f"{name}: string expected")
    refuse_words(name, words[count:])
    return words


def _migrate(monitor: Monitor, words: list[str]) -> str:
    options, words = take_options("migrate", words, "dr")
    (uri,) = _strings("migrate", words, 1)
    monitor.migration.migrate(uri, "r" in options)
    if "d" in options:
        return ""
    return "terminal does not allow synchronous migration, continuing detached\n"


def _migrate_incoming(monitor: Monitor, words: list[str]) -> str:
    (uri,) = _strings("migrate_incoming", words, 1)
    monitor.migration.incoming(uri)
    return ""


def _migrate_recover(monitor: Monitor, words: list[str]) -> str:
    (uri,) = _strings("migrate_recover", words, 1)
    monitor.migration.recover(uri)
    return ""


def _migrate_continue(monitor: Monitor, words: list[str]) -> str:
    (state,) = _strings("migrate_continue", words, 1)
    _check_known(state, STATUSES)
    monitor.migration.proceed(state)
    return ""


def _migrate_cancel(monitor: Monitor, words: list[str]) -> str:
    refuse_words("migrate_cancel", words)
    monitor.migration.cancel()
    return ""


def _migrate_pause(monitor: Monitor, words: list[str]) -> str:
    refuse_words("migrate_pause", words)
    monitor.migration.pause()
    return ""


def _migrate_start_postcopy(monitor: Monitor, words: list[str]) -> str:
    refuse_words("migrate_start_postcopy", words)
    monitor.migration.start_postcopy()
    return ""


def _migrate_set_capability(monitor: Monitor, words: list[str]) -> str:
    if not words:
        raise HmpLineError("migrate_set_capability: string expected")
    if words[1:2] not in (["on"], ["off"]):
        raise HmpLineError("Expected 'on' or 'off'")
    refuse_words("migrate_set_capability", words[2:])
    _check_known(words[0], CAPABILITY_NAMES)
    monitor.migration.set_capabilities([(words[0], words[1] == "on")])
    return ""


def _migrate_set_parameter(monitor: Monitor, words: list[str]) -> str:
    name, word = _strings("migrate_set_parameter", words, 2)
    monitor.migration.set_parameters({name: _value(name, word)})
    return ""


def _value(name: str, word: str) -> Setting:
    """Return the value of a parameter that a word stands for."""
    if name == BITMAP_MAPPING:
        raise QmpError(f"The {name} parameter can only be set through QMP")
    if name == AGGRESSION_LEVEL:
        return _number(name, word)
    if name in OWN_PARAMETERS:
        return word
    _check_known(name, PARAMETERS)
    if name in _IN_MIB:
        return size_in_mib(word)
    parameter = PARAMETERS[name]
    if parameter.type is ParameterType.SIZE or name in _LIKE_SIZES:
        return size(word, name)
    if parameter.type is ParameterType.BOOL:
        return switch(word, name)
    if parameter.type is ParameterType.ENUM and word not in parameter.values:
        raise QmpError(f"Parameter '{name}' does not accept value '{word}'")
    if parameter.type in (ParameterType.ENUM, ParameterType.STRING):
        return word
    return unsigned(word, name, 8 if parameter.type is ParameterType.UINT8 else 32)


def _number(name: str, word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise QmpError(f"Parameter '{name}' expects a number") from None


def _check_known(name: str, known: object) -> None:
    if name not in known:  # type: ignore[operator]
        raise QmpError(f"invalid parameter value: {name}")


def _info_migrate(monitor: Monitor, words: list[str]) -> str:
    refuse_words("migrate", words)
    return info_lines(monitor.migration.info())


def _info_migrate_capabilities(monitor: Monitor, words: list[str]) -> str:
    refuse_words("migrate_capabilities", words)
    return "".join(
        f"{one['capability']}: {_shown(one['state'])}\n" for one in monitor.migration.capabilities()
    )


def _info_migrate_parameters(monitor: Monitor, words: list[str]) -> str:
    refuse_words("migrate_parameters", words)
    values = monitor.migration.parameters()
    lines = []
    for name, unit in _SHOWN.items():
        if name in values:
            text = _shown(values[name])
            if name in PARAMETERS and PARAMETERS[name].type is ParameterType.STRING:
                text = f"'{text}'"
            lines.append(f"{name}: {text}{unit}\n")
    return "".join(lines)


def _shown(value: Setting) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


LINES = {
    "migrate": Line(
        _migrate,
        "migrate [-d] [-r] uri -- migrate to URI (using -d to not wait for completion)\n"
        "\t\t\t -r to resume a paused postcopy migration\n",
    ),
    "migrate_cancel": Line(_migrate_cancel, "migrate_cancel  -- cancel the current VM migration\n"),
    "migrate_continue": Line(
        _migrate_continue,
        "migrate_continue state -- Continue migration from the given paused state\n",
    ),
    "migrate_incoming": Line(
        _migrate_incoming,
        "migrate_incoming uri -- Continue an incoming migration from an -incoming defer\n",
    ),
    "migrate_pause": Line(
        _migrate_pause, "migrate_pause  -- Pause an ongoing migration (postcopy-only)\n"
    ),
    "migrate_recover": Line(
        _migrate_recover, "migrate_recover uri -- Continue a paused incoming postcopy migration\n"
    ),
    "migrate_set_capability": Line(
        _migrate_set_capability,
        "migrate_set_capability capability state -- Enable/Disable the usage of a capability for "
        "migration\n",
    ),
    "migrate_set_parameter": Line(
        _migrate_set_parameter,
        "migrate_set_parameter parameter value -- Set the parameter for migration\n",
    ),
    "migrate_start_postcopy": Line(
        _migrate_start_postcopy,
        "migrate_start_postcopy  -- Followup to a migration command to switch the migration to "
        "postcopy mode. The postcopy-ram capability must be set on both source and destination "
        "before the original migration command .\n",
    ),
    "info migrate": Line(_info_migrate, "info migrate  -- show migration status\n"),
    "info migrate_capabilities": Line(
        _info_migrate_capabilities,
        "info migrate_capabilities  -- show current migration capabilities\n",
    ),
    "info migrate_parameters": Line(
        _info_migrate_parameters,
        "info migrate_parameters  -- show current migration parameters\n",
    ),
}
