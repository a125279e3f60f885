"""What another process tracks of `pysampler guest` agrees with the guest's truth to the page."""

import json
import socket
import time

import numpy as np
import pytest

from pysampler import Mode, find_blocks
from pysampler.guest.process import GuestProcess
from pysampler.measuring import exact_observer
from pysampler.tracking.dirty_bitmap import DirtyBitmap
from pysampler.tracking.dirty_ring import DirtyRing, vcpu_threads
from pysampler.tracking.probe import probe
from pysampler.tracking.vcpu_log import VcpuLog

N_PAGES = 4099
TRACKERS = {
    "userfaultfd-dirty-bitmap": lambda blocks, pid: DirtyBitmap(blocks, pid=pid),
    "userfaultfd-dirty-ring": lambda blocks, pid: DirtyRing(blocks, vcpu_threads(pid), pid=pid),
    "vcpu-log-dirty-bitmap": lambda blocks, pid: logged(blocks, Mode.DIRTY_BITMAP, pid),
    "vcpu-log-dirty-ring": lambda blocks, pid: logged(blocks, Mode.DIRTY_RING, pid),
}


def logged(blocks, mode, pid):
    observer = exact_observer(blocks, mode, pid=pid)
    assert type(observer) is VcpuLog
    return observer


@pytest.fixture
def guest(tmp_path):
    """A guest of two vCPUs with truth; its `ask` speaks QMP."""
    address = str(tmp_path / "qmp")
    words = ["--vcpus=2", "--truth", "--zero=30%", f"--memory={N_PAGES * 4096}"]
    words += ["--workload=uniform:wps=2k", f"--qmp=unix:{address}"]
    with GuestProcess(*words) as process, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        stream = connection.makefile("rw")
        stream.readline()

        def ask(execute, **arguments):
            stream.write(json.dumps({"execute": execute, "arguments": arguments}))
            stream.flush()
            while "return" not in (reply := json.loads(stream.readline())):
                assert "event" in reply, reply
            return reply["return"]

        ask("qmp_capabilities")
        process.ask = ask
        yield process
        stream.close()


@pytest.mark.parametrize("name", TRACKERS)
def test_what_is_tracked_from_outside_is_the_truth(guest, name):
    way, _, mode = name.rpartition("-dirty-")
    for finding in probe() if way == "userfaultfd" else ():
        if f"dirty-{mode}" in finding.detail and not finding.works:
            pytest.skip(f"{finding.name}: {finding.detail}; {finding.cure}")
    guest.ask("stop")
    observer = TRACKERS[name](find_blocks(guest.pid), guest.pid)
    try:
        observer.warm_up()
        observer.baseline()
        since = time.monotonic_ns()
        before = [vcpu["writes"] for vcpu in guest.ask("x-query-workload")]
        guest.ask("cont")
        while True:
            counters = [vcpu["writes"] for vcpu in guest.ask("x-query-workload")]
            if min(np.subtract(counters, before)) > 500:
                break
        guest.ask("stop")
        found = observer.compare().pages
        assert found == guest.ask("x-count-dirty-since", **{"monotonic-ns": since})["pages"]
        assert found > 500
        if mode == "ring":
            assert sum(pages for _, pages in observer.vcpu_pages()) == found
            assert list(vcpu_threads(guest.pid)) == [0, 1]
    finally:
        observer.close()
    guest.ask("cont")
