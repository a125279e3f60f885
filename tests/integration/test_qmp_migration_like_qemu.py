"""The lines and commands about migration, asked of a real QEMU 10 and of our server."""

import json

import pytest
from qmp_fakes import Client, FakeMigration, serving
from real_qemu import PROGRAM_10, Qemu

from pysampler.migration.settings import Settings

pytestmark = pytest.mark.integration

# One after the other: what is set shows in what is asked later. No line needs a migration.
LINES = """
help migrate
help migrate_cancel
help migrate_continue
help migrate_incoming
help migrate_pause
help migrate_recover
help migrate_set_capability
help migrate_set_parameter
help migrate_start_postcopy
help set_vcpu_dirty_limit
help cancel_vcpu_dirty_limit
help info vcpu_dirty_limit
help info migrate
help info migrate_capabilities
help info migrate_parameters
migrate
migrate -d
migrate -x unix:/x
migrate -dr unix:/x
migrate -b unix:/x
migrate unix:/x y
migrate_cancel
migrate_cancel x
migrate_continue
migrate_continue nonsense
migrate_continue active x
migrate_incoming
migrate_recover
migrate_pause x
migrate_start_postcopy x
migrate_set_parameter
migrate_set_parameter downtime-limit
migrate_set_parameter max-bandwidth 100
migrate_set_parameter max-bandwidth 1.5
info migrate_parameters
migrate_set_parameter max-bandwidth 1.5B
migrate_set_parameter max-bandwidth 0x10M
migrate_set_parameter max-bandwidth 15.9E
migrate_set_parameter max-bandwidth -1
migrate_set_parameter max-bandwidth 99999999999999999999
migrate_set_parameter max-bandwidth 10B
migrate_set_parameter max-postcopy-bandwidth 10
migrate_set_parameter avail-switchover-bandwidth 10
migrate_set_parameter xbzrle-cache-size 64
migrate_set_parameter xbzrle-cache-size 64M
migrate_set_parameter announce-step 50K
migrate_set_parameter announce-rounds -5
migrate_set_parameter downtime-limit x
migrate_set_parameter downtime-limit -1
migrate_set_parameter downtime-limit 1.5
migrate_set_parameter downtime-limit 99999999999999999999
migrate_set_parameter downtime-limit 1.5k
migrate_set_parameter cpu-throttle-initial 256
migrate_set_parameter cpu-throttle-initial -1
migrate_set_parameter cpu-throttle-initial 0
migrate_set_parameter cpu-throttle-initial x
migrate_set_parameter cpu-throttle-initial 08
migrate_set_parameter cpu-throttle-initial 010
migrate_set_parameter cpu-throttle-tailslow 1
migrate_set_parameter cpu-throttle-tailslow ON
migrate_set_parameter cpu-throttle-tailslow y
migrate_set_parameter mode nonsense
migrate_set_parameter mode normal
migrate_set_parameter zero-page-detection legacy
migrate_set_parameter multifd-compression uadk
migrate_set_parameter multifd-compression zstd
migrate_set_parameter multifd-zlib-level 30
migrate_set_parameter tls-creds x
migrate_set_parameter tls-creds a b
migrate_set_parameter vcpu-dirty-limit 5
migrate_set_parameter x-vcpu-dirty-limit-period 5
migrate_set_parameter x-checkpoint-delay 4294967296
migrate_set_parameter x-checkpoint-delay 5
migrate_set_parameter direct-io on
migrate_set_parameter max_bandwidth 5
migrate_set_parameter block-bitmap-mapping x
info migrate_parameters
info migrate_parameters x
migrate_set_capability
migrate_set_capability events
migrate_set_capability events true
migrate_set_capability events on x
migrate_set_capability nonsense x
migrate_set_capability nonsense on
migrate_set_capability events on
migrate_set_capability dirty-limit on
info migrate_capabilities
info migrate_capabilities x
info migrate
info migrate x
set_vcpu_dirty_limit
set_vcpu_dirty_limit x
set_vcpu_dirty_limit -1
set_vcpu_dirty_limit 10 1 1
cancel_vcpu_dirty_limit
cancel_vcpu_dirty_limit 1
cancel_vcpu_dirty_limit x
cancel_vcpu_dirty_limit 1 2
info vcpu_dirty_limit
info vcpu_dirty_limit x
""".splitlines()[1:]


def hmp(client, line):
    arguments = {"command-line": line}
    return client.ask(json.dumps({"execute": "human-monitor-command", "arguments": arguments}))


@pytest.fixture
def both(tmp_path):
    address = f"unix:{tmp_path}/qemu"
    migration = FakeMigration(Settings(has_ring=False))
    options = ("-m", "64M", "-smp", "2", "-qmp", f"{address},server=on,wait=off")
    with (
        Qemu(tmp_path, *options, program=PROGRAM_10),
        serving(f"unix:{tmp_path}/ours", migration=migration) as server,
        Client(address) as qemu,
        Client(server.address) as ours,
    ):
        yield qemu.negotiate(), ours.negotiate()


def test_the_lines_print_the_same(both):
    qemu, ours = both
    for line in LINES:
        assert hmp(ours, line) == hmp(qemu, line), line


def test_the_commands_are_listed_in_the_same_order(both):
    qemu, ours = (
        [one["name"] for one in json.loads(client.ask('{"execute": "query-commands"}'))["return"]]
        for client in both
    )
    own = [name for name in ours if name not in qemu]
    assert own == ["x-count-dirty-since", "x-query-workload"]
    assert [name for name in qemu if name in ours] == ours[len(own) :]
