# SPDX-License-Identifier: MIT
"""The tables of parameters and capabilities against what a real QEMU 10.0.2 answered."""

import json
import math
from pathlib import Path

import pytest

from pysampler.qemu.migration import (
    CAPABILITIES,
    CAPABILITY_RULES,
    FLUSH_PAGES,
    ITERATION_BYTES,
    PAGE_BYTES,
    PARAMETERS,
    REPORTED_ORDER,
    WINDOW_MS,
    WINDOWS_PER_S,
    ParameterType,
    capability_error,
    range_error,
)
from pysampler.units import MIB

RECORDED = Path(__file__).parents[1] / "golden/migrate-set-qemu10.jsonl"
REPLIES = [json.loads(line) for line in RECORDED.read_text().splitlines()]

# What QMP refuses for its type, its name or its enum, before any bound is looked at.
TYPE_ERRORS = (
    "expects uint", "does not accept value", "Invalid parameter type", "is unexpected",
    "is missing",
)  # fmt: skip


def replies_to(command):
    return [reply for reply in REPLIES if reply["execute"] == command]


def of_type_error(reply):
    return any(text in reply.get("error", "") for text in TYPE_ERRORS)


def test_parameters_have_qemus_names_order_and_defaults():
    (reply,) = replies_to("query-migrate-parameters")
    assert list(reply["return"]) == list(REPORTED_ORDER)
    assert reply["return"] == {name: one.default for name, one in PARAMETERS.items()}
    for name, value in reply["return"].items():
        assert type(value) is type(PARAMETERS[name].default)


def test_capabilities_have_qemus_names_and_order_and_are_off():
    (reply,) = replies_to("query-migrate-capabilities")
    assert reply["return"] == [{"state": False, "capability": name} for name in CAPABILITIES]


def test_bounds_refuse_what_qemu_refuses_in_its_words_and_order():
    settings = {name: one.default for name, one in PARAMETERS.items()}
    errors = set()
    for reply in replies_to("migrate-set-parameters"):
        given = {key: "" if value is None else value for key, value in reply["arguments"].items()}
        if of_type_error(reply):
            continue
        error = range_error(settings | given)
        assert error == reply.get("error"), given
        errors.add(error)
        if error is None:
            settings |= given
    # Of all with bounds, but for announce-max and cpu-throttle-increment's twin texts.
    assert len(errors) > 12


def test_a_recorded_enum_and_what_it_refuses():
    for reply in replies_to("migrate-set-parameters"):
        for name, value in reply["arguments"].items():
            if name in PARAMETERS and PARAMETERS[name].type is ParameterType.ENUM:
                assert (value in PARAMETERS[name].values) is ("error" not in reply), (name, value)


@pytest.mark.parametrize("name", [name for name, one in PARAMETERS.items() if one.range_error])
def test_a_bound_is_the_last_value_that_is_taken(name):
    settings = {each: one.default for each, one in PARAMETERS.items()}
    one = PARAMETERS[name]
    least = settings[one.least] if isinstance(one.least, str) else one.least
    assert range_error(settings | {name: least}) is None
    if least > 0:
        assert range_error(settings | {name: least - 1}) == one.range_error
    if one.most is not None:
        # A higher cpu-throttle-initial than max-cpu-throttle is refused in the other's name.
        assert range_error(settings | {name: one.most}) is None
        assert range_error(settings | {name: one.most + 1}) == one.range_error
    assert name.replace("-", "_") in one.range_error.replace("-", "_")


def test_capabilities_refuse_each_other_as_in_qemu():
    enabled, errors = set(), set()
    for reply in replies_to("migrate-set-capabilities"):
        if of_type_error(reply):
            continue
        given = {one["capability"]: one["state"] for one in reply["arguments"]["capabilities"]}
        on = {name for name in CAPABILITIES if given.get(name, name in enabled)}
        error = capability_error(on)
        assert error == reply.get("error"), given
        errors.add(error)
        if error is None:
            enabled = on
    assert errors == {None, *(rule.error for rule in CAPABILITY_RULES)}


def test_a_guest_with_a_dirty_ring_may_have_a_dirty_limit():
    assert capability_error({"dirty-limit", "a dirty ring"}) is None
    assert "auto-converge" in capability_error({"dirty-limit", "auto-converge", "a dirty ring"})


# Pages of a saturated window, as recorded of max-bandwidth 16, 32, 48 and 64 MiB/s, and the mbps of
# one of them.
@pytest.mark.parametrize(("mib", "pages"), [(16, 416), (32, 832), (48, 1248), (64, 1664)])
def test_a_saturated_window_sends_what_was_recorded(mib, pages):
    budget = mib * MIB // WINDOWS_PER_S
    buffers = math.floor(budget / (FLUSH_PAGES * PAGE_BYTES)) + 1
    assert buffers * FLUSH_PAGES == pages
    if mib == 32:
        assert (pages * PAGE_BYTES + ITERATION_BYTES) * 8 / WINDOW_MS / 1000 == 273.16368
