"""What the real QEMU 10 says to wrong arguments: the golden table, and many more by chance."""

import json
import random

import pytest
from qemu_arguments import ARGUMENTS, ROWS, error_of
from qmp_fakes import Client
from real_qemu import PROGRAM_10, Qemu

from pysampler.qmp.schema import (
    Array,
    Boolean,
    Enum,
    Integer,
    String,
    StringOrNull,
    Struct,
    Unsigned,
)

pytestmark = pytest.mark.integration

NAMES = ("calc-dirty-rate", "migrate", "migrate-set-capabilities", "migrate-set-parameters")
WRONG = (None, True, 1, -1, 1.5, "x", [], [1], {}, {"a": 1}, 1 << 63, 1 << 64)
# Of our own; a QEMU does not know them.
OWN = ("x-aggression", "x-aggression-level", "x-aggression-ratio", "x-dirty-limit-method")
# What a schema says and no command does.
SCHEMAS = (
    "Invalid parameter type",
    "is missing",
    "is unexpected",
    "does not accept",
    "expects uint",
)


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    directory = tmp_path_factory.mktemp("qemu")
    address = f"unix:{directory}/ours"
    options = ("-m", "64M", "-qmp", f"{address},server=on,wait=off")
    with Qemu(directory, *options, program=PROGRAM_10), Client(address) as client:
        client.negotiate()

        def ask(name, arguments):
            client.send(json.dumps({"execute": name, "arguments": arguments}).encode())
            while "timestamp" in (reply := json.loads(client.line())):
                pass
            return reply.get("error", {}).get("desc")

        yield ask


def test_the_golden_table_is_what_qemu_says(ask):
    for row in ROWS:
        assert ask(row["execute"], row["arguments"]) == row["error"], row


def some(rng, kind):
    """Return a value of a type, or, now and then, one that is not."""
    if rng.random() < 0.12:
        return rng.choice(WRONG)
    if isinstance(kind, Array):
        return [some(rng, kind.item) for _ in range(rng.randint(0, 2))]
    if isinstance(kind, Struct):
        return some_members(rng, kind)
    if isinstance(kind, Enum):
        return rng.choice([value for value in kind.values if value not in OWN])
    values = {Boolean: False, Integer: 0, Unsigned: 1, String: "/nowhere", StringOrNull: None}
    return values[type(kind)]


def some_members(rng, struct):
    given = {
        member.name: some(rng, member.type)
        for member in struct.members
        if member.name not in OWN
        if rng.random() < (0.5 if member.optional else 0.93)
    }
    for first, branch in struct.branches.items():
        if given.get(struct.members[0].name) == first:
            given |= some_members(rng, branch)
    if rng.random() < 0.05:
        given["foo"] = 1
    return dict(rng.sample(sorted(given.items()), len(given)))


def test_arguments_by_chance_get_the_same_answers(ask):
    rng = random.Random(1001)
    refused = 0
    for _ in range(3000):
        name = rng.choice(NAMES)
        arguments = some_members(rng, Struct(ARGUMENTS[name]))
        expected = error_of(name, arguments)
        if expected is None and name == "migrate":
            continue  # it would begin
        error = ask(name, arguments)
        if expected is not None:
            refused += 1
            assert error == expected, (name, arguments)
        elif error is not None:  # the command's own reasons
            assert not any(words in error for words in SCHEMAS), (name, arguments, error)
    assert refused > 500
