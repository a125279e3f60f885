"""Parameters and capabilities, against what a real QEMU 10.0.2 answered."""

import json
from pathlib import Path

import pytest

from pysampler.errors import StateError
from pysampler.migration.settings import Settings

RECORDED = Path(__file__).parents[1] / "golden/migrate-set-qemu10.jsonl"
REPLIES = [json.loads(line) for line in RECORDED.read_text().splitlines()]

# What the schema of QMP refuses, before the settings hear of it.
TYPE_ERRORS = (
    "expects uint", "does not accept value", "Invalid parameter type", "is unexpected",
    "is missing",
)  # fmt: skip


@pytest.fixture
def settings():
    return Settings(has_ring=True)


def error_of(function, *arguments):
    try:
        function(*arguments)
    except StateError as error:
        return str(error)
    return None


def test_they_answer_as_qemu_did():
    settings = Settings(has_ring=False)
    answered = 0
    for reply in REPLIES:
        command, arguments = reply["execute"], reply.get("arguments", {})
        if any(text in reply.get("error", "") for text in TYPE_ERRORS):
            continue
        if command == "query-migrate-parameters":
            assert list(settings.parameters().items()) == list(reply["return"].items())
        elif command == "query-migrate-capabilities":
            assert settings.capabilities() == reply["return"]
        elif command == "migrate-set-parameters":
            given = {key: "" if value is None else value for key, value in arguments.items()}
            assert error_of(settings.set_parameters, given) == reply.get("error"), given
        else:
            pairs = [(one["capability"], one["state"]) for one in arguments["capabilities"]]
            assert error_of(settings.set_capabilities, pairs) == reply.get("error"), pairs
        answered += 1
    assert answered > 100


def test_a_refused_set_changes_nothing(settings):
    before = settings.parameters(), settings.capabilities()
    refused = {"downtime-limit": 100, "cpu-throttle-initial": 0}
    with pytest.raises(StateError, match="cpu_throttle_initial"):
        settings.set_parameters(refused)
    with pytest.raises(StateError, match="Postcopy preempt requires postcopy-ram"):
        settings.set_capabilities([("events", True), ("postcopy-preempt", True)])
    with pytest.raises(StateError, match="does not accept value 'nonsense'"):
        settings.set_capabilities([("events", True), ("nonsense", True)])
    with pytest.raises(StateError, match="'nonsense' is unexpected"):
        settings.set_parameters({"downtime-limit": 100, "nonsense": 1})
    assert (settings.parameters(), settings.capabilities()) == before


def test_what_was_set_is_what_is_read(settings):
    settings.set_parameters({"max-bandwidth": -1, "cpu-throttle-tailslow": True})
    assert settings.number("max-bandwidth") == (1 << 64) - 1
    assert settings.value("cpu-throttle-tailslow") is True
    assert settings.parameters()["max-bandwidth"] == (1 << 64) - 1
    settings.set_capabilities([("events", True), ("auto-converge", False)])
    assert settings.enabled("events")
    assert not settings.enabled("auto-converge")
    settings.set_capabilities([("events", False)])
    assert not settings.enabled("events")


def test_a_dirty_limit_needs_a_ring_and_no_auto_converge(settings):
    settings.set_capabilities([("dirty-limit", True)])
    with pytest.raises(StateError, match="dirty-limit conflicts with auto-converge"):
        settings.set_capabilities([("auto-converge", True)])
    with pytest.raises(StateError, match="'dirty-ring-size' set"):
        Settings(has_ring=False).set_capabilities([("dirty-limit", True)])


@pytest.mark.parametrize("other", ["auto-converge", "dirty-limit"])
def test_aggression_goes_with_neither_of_the_others(settings, other):
    settings.set_capabilities([("x-aggression", True)])
    with pytest.raises(StateError, match=f"x-aggression conflicts with {other}: only one"):
        settings.set_capabilities([(other, True)])
    settings.set_capabilities([(other, True), ("x-aggression", False)])
    assert settings.enabled(other)


def test_own_settings_show_only_once_they_are_set(settings):
    parameters, capabilities = settings.parameters(), settings.capabilities()
    assert not [name for name in parameters if "aggression" in name or "method" in name]
    own = {
        "x-aggression-level": 0.25,
        "x-aggression-ratio": "averages",
        "x-dirty-limit-method": "v1",
    }
    settings.set_parameters(own)
    settings.set_capabilities([("x-aggression", True)])
    assert list(settings.parameters().items()) == [
        *parameters.items(),
        *own.items(),
    ]
    assert settings.capabilities() == [
        *capabilities,
        {"state": True, "capability": "x-aggression"},
    ]


@pytest.mark.parametrize("level", [-0.01, 1.01, float("nan"), float("inf")])
def test_a_level_of_aggression_is_a_share(settings, level):
    with pytest.raises(StateError, match=r"'x-aggression-level' expects .* range of 0 to 1"):
        settings.set_parameters({"x-aggression-level": level})
    for level_in_range in (0, 1):
        settings.set_parameters({"x-aggression-level": level_in_range})


@pytest.mark.parametrize("name", ["x-aggression-ratio", "x-dirty-limit-method"])
def test_a_setting_of_two_values_takes_no_third(settings, name):
    with pytest.raises(StateError, match=f"'{name}' does not accept value 'v2'"):
        settings.set_parameters({name: "v2"})


@pytest.mark.parametrize(
    "capability", ["xbzrle", "x-colo", "multifd", "x-ignore-shared", "background-snapshot"]
)
def test_a_capability_that_the_guest_lacks_is_refused_by_name(settings, capability):
    settings.check_supported()
    settings.set_capabilities([(capability, True)])
    with pytest.raises(StateError, match=f"cannot migrate with capability '{capability}'"):
        settings.check_supported()
    settings.set_capabilities([(capability, False)])
    settings.check_supported()


@pytest.mark.parametrize(
    ("name", "value", "default"),
    [
        ("tls-creds", "tls0", ""),
        ("mode", "cpr-reboot", "normal"),
        ("zero-page-detection", "none", "multifd"),
    ],
)
def test_a_parameter_that_the_guest_lacks_is_refused_by_name(settings, name, value, default):
    settings.set_parameters({name: value})
    with pytest.raises(StateError, match=f"parameter '{name}'"):
        settings.check_supported()
    settings.set_parameters({name: default})
    settings.check_supported()
