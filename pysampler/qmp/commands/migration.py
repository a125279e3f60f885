# SPDX-License-Identifier: MIT
"""Commands about migration; its lines of the human monitor are in migration_lines.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pysampler.qmp.commands.definition import Command
from pysampler.qmp.commands.migration_arguments import (
    BITMAP_MAPPING,
    INCOMING,
    MIGRATE,
    SET_CAPABILITIES,
    SET_PARAMETERS,
    STATUSES,
)
from pysampler.qmp.schema import Enum, Member, String
from pysampler.qmp.wire.messages import QmpError

if TYPE_CHECKING:
    from pysampler.qmp.commands.definition import Arguments, Monitor


def _migrate(monitor: Monitor, arguments: Arguments) -> Any:
    monitor.migration.migrate(_uri(arguments), arguments.get("resume", False))
    return {}


def _migrate_incoming(monitor: Monitor, arguments: Arguments) -> Any:
    monitor.migration.incoming(_uri(arguments), arguments.get("exit-on-error", True))
    return {}


def _uri(arguments: Arguments) -> str:
    """Return the URI that is given, or that says what the channel does."""
    uri: str | None = arguments.get("uri")
    channels = arguments.get("channels", [])
    if (uri is None) is not bool(channels):
        raise QmpError("need either 'uri' or 'channels' argument")
    if uri is not None:
        return uri
    for kind in ("main", "cpr"):
        if sum(channel["channel-type"] == kind for channel in channels) > 1:
            raise QmpError(f"Channel list has more than one {kind} entry")
    addresses = [channel["addr"] for channel in channels if channel["channel-type"] == "main"]
    if not addresses:
        raise QmpError("Channel list has no main entry")
    return _uri_of(addresses[0])


def _uri_of(address: dict[str, Any]) -> str:
    kind = address["transport"]
    if kind == "socket":
        kind = address["type"]
    if kind == "unix":
        if address.get("abstract", False):
            raise QmpError("an emulated guest has no abstract Unix socket; leave 'abstract' out")
        return f"unix:{address['path']}"
    if kind == "inet":
        host = f"[{address['host']}]" if ":" in address["host"] else address["host"]
        return f"tcp:{host}:{address['port']}"
    # An emulated guest has none of the others, and refuses them by their name.
    return f"{kind}:"


def _migrate_cancel(monitor: Monitor, _: Arguments) -> Any:
    monitor.migration.cancel()
    return {}


def _migrate_continue(monitor: Monitor, arguments: Arguments) -> Any:
    monitor.migration.proceed(arguments["state"])
    return {}


def _migrate_start_postcopy(monitor: Monitor, _: Arguments) -> Any:
    monitor.migration.start_postcopy()
    return {}


def _migrate_pause(monitor: Monitor, _: Arguments) -> Any:
    monitor.migration.pause()
    return {}


def _migrate_recover(monitor: Monitor, arguments: Arguments) -> Any:
    monitor.migration.recover(arguments["uri"])
    return {}


def _migrate_set_parameters(monitor: Monitor, arguments: Arguments) -> Any:
    if BITMAP_MAPPING in arguments:
        raise QmpError(f"an emulated guest has no disks; leave '{BITMAP_MAPPING}' out")
    monitor.migration.set_parameters(arguments)
    return {}


def _migrate_set_capabilities(monitor: Monitor, arguments: Arguments) -> Any:
    monitor.migration.set_capabilities(
        [(given["capability"], given["state"]) for given in arguments["capabilities"]]
    )
    return {}


def _query_migrate(monitor: Monitor, _: Arguments) -> Any:
    info = monitor.migration.info()
    return {} if info is None else info.to_json()


def _query_migrate_parameters(monitor: Monitor, _: Arguments) -> Any:
    return monitor.migration.parameters()


def _query_migrate_capabilities(monitor: Monitor, _: Arguments) -> Any:
    return monitor.migration.capabilities()


COMMANDS = {
    "migrate": Command(_migrate, MIGRATE),
    "migrate-incoming": Command(_migrate_incoming, INCOMING),
    "migrate_cancel": Command(_migrate_cancel),
    "migrate-continue": Command(_migrate_continue, (Member("state", Enum(STATUSES)),)),
    "migrate-start-postcopy": Command(_migrate_start_postcopy),
    "migrate-pause": Command(_migrate_pause),
    "migrate-recover": Command(_migrate_recover, (Member("uri", String()),)),
    "migrate-set-parameters": Command(_migrate_set_parameters, SET_PARAMETERS),
    "migrate-set-capabilities": Command(_migrate_set_capabilities, SET_CAPABILITIES),
    "query-migrate": Command(_query_migrate),
    "query-migrate-parameters": Command(_query_migrate_parameters),
    "query-migrate-capabilities": Command(_query_migrate_capabilities),
}
