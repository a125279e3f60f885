"""The reply to query-migrate and the lines of ``info migrate``, against a real QEMU's."""

import pytest
from recorded_qmp import exchanges, sections

from pysampler.migration.info import MigrationInfo, RamInfo, info_lines

SECTIONS = sections()


def from_json(reply):
    """Return the MigrationInfo that a recorded reply is of; None for the empty one."""
    if not reply:
        return None
    members = {name.replace("-", "_"): value for name, value in reply.items()}
    if "ram" in members:
        ram = {name.replace("-", "_"): value for name, value in members["ram"].items()}
        members["ram"] = RamInfo(**ram)
    return MigrationInfo(**members)


def recorded(section):
    """Yield the reply to query-migrate, and the lines that came just after it or None."""
    last = {}
    for command, reply in exchanges(SECTIONS[section]):
        if command.message["execute"] == "query-migrate" and "return" in reply.message:
            last[command.side] = reply.message["return"]
            yield last[command.side], None
        elif command.message.get("arguments", {}).get("command-line") == "info migrate":
            yield last.get(command.side, {}), reply.message["return"]


@pytest.mark.parametrize("section", SECTIONS)
def test_the_reply_has_qemus_members_in_its_order(section):
    for reply, _ in recorded(section):
        info = from_json(reply)
        again = {} if info is None else info.to_json()
        assert list(again.items()) == list(reply.items())
        assert list(again.get("ram", {})) == list(reply.get("ram", {}))


# Between the two queries time passed: these lines are another moment's.
MOVING = ("total time", "transferred", "remaining", "normal", "precopy ram", "postcopy")


def settled(lines, info):
    running = info is not None and info.status not in ("completed", "failed", "setup")
    moving = MOVING if running else ()
    return [line for line in lines.splitlines() if not line.startswith(moving)]


@pytest.mark.parametrize("section", SECTIONS)
def test_the_lines_are_qemus(section):
    for reply, lines in recorded(section):
        if lines is not None:
            info = from_json(reply)
            printed = info_lines(info).replace("\n", "\r\n")
            # The last section's was asked for a moment later than its query-migrate.
            assert settled(printed, info) == settled(lines, info)


def test_what_waits_for_nothing_is_in_no_line():
    lines = info_lines(MigrationInfo(status="cancelled", error_desc="Channel error"))
    assert lines.endswith("Migration status: cancelled\ntotal time: 0 ms\n")


def test_equal_and_neighbouring_blocktimes_print_as_a_range():
    info = MigrationInfo(status="completed", postcopy_vcpu_blocktime=[7, 3, 4, 4, 5, 9])
    assert "postcopy vcpu blocktime: 3-5,7,9\n" in info_lines(info)


def test_a_tcp_address_is_printed_as_its_uri():
    address = {"port": "4444", "ipv4": True, "host": "127.0.0.1", "type": "inet"}
    lines = info_lines(MigrationInfo(status="setup", socket_address=[address]))
    assert lines.endswith("socket address: [\n\ttcp:127.0.0.1:4444\n]\n")
