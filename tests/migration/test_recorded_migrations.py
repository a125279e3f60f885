"""Two guests answer as two QEMUs did, recorded: tests/golden/migration/transcript.jsonl."""

import pytest
from recorded_qmp import sections
from replay import Replay

SECTIONS = sections()
# A QEMU of 256 MiB has some ROM besides.
GUEST = ("--memory", "256M", "--block", "pc.rom=520K", "--vcpus", "2", "--zero", "50%")
QUIET = "uniform:wps=1k,ws=16M"
BUSY = "uniform:wps=12k,ws=96M"


def replay(directory, names, *options, workload=QUIET):
    words = (*GUEST, *options, "--workload", workload)
    both = {"src": words, "dst": (*words, "--incoming", "defer")}
    with Replay(directory, both) as guests:
        for name in names:
            guests.run(SECTIONS[name])


def test_before_a_migration(tmp_path):
    replay(
        tmp_path,
        [
            "defaults, and every error before a migration",
            "migrate-set-capabilities, errors",
            "migrate-set-parameters, ranges and errors",
            "the destination before a migration",
        ],
        "--dirty-ring-size",
        "0",
    )


@pytest.mark.parametrize(
    "section",
    [
        "pre-copy, events on: active, errors while it runs, completed",
        "pre-copy without the events capability",
        "the destination goes away while active (and, cancelled, exits by itself)",
        "setup: a peer that does not accept, cancelled",
        "pause-before-switchover",
    ],
)
def test_a_migration(tmp_path, section):
    replay(tmp_path, [section])


def test_auto_converge(tmp_path):
    replay(tmp_path, ["auto-converge, then cancelled"], workload=BUSY)


def test_dirty_limit(tmp_path):
    section = "KVM with a dirty ring: vcpu-dirty-limit commands, and the capability dirty-limit"
    replay(tmp_path, [section], workload=BUSY)


def test_what_is_refused_before_a_post_copy(tmp_path):
    lines = SECTIONS["post-copy with blocktime, 2 vCPUs"]
    commands = [line.message.get("execute") for line in lines]
    # A guest that is set for a post-copy refuses by name to listen, and to migrate.
    listens, migrates = commands.index("migrate-incoming"), commands.index("migrate")
    source = [line for line in lines[listens:migrates] if line.side == "src"]
    words = (*GUEST, "--workload", QUIET)
    with Replay(tmp_path, {"src": words, "dst": (*words, "--incoming", "defer")}) as guests:
        guests.run(lines[:listens] + source)
