from pathlib import Path

import pytest
from tracked_guest import Guest

from pysampler.tracking.probe import probe


def needs(*names):
    """Skip, with its cure, when one of the probed features does not work here."""
    for finding in probe():
        if finding.name in names and not finding.works:
            pytest.skip(f"{finding.name}: {finding.detail}; {finding.cure}")


@pytest.fixture(scope="session")
def needs_dirty_bitmap():
    needs("userfaultfd write-protect, asynchronous", "PAGEMAP_SCAN")


@pytest.fixture(scope="session")
def needs_dirty_ring():
    needs("userfaultfd write-protect, messages")


@pytest.fixture
def guest():
    guest = Guest()
    yield guest
    guest.end()


@pytest.fixture
def huge_pages():
    """Sixteen huge pages of 2 MiB, or more that were there before."""
    reserved = Path("/proc/sys/vm/nr_hugepages")
    before = reserved.read_text()
    try:
        reserved.write_text(str(max(16, int(before))))
        if int(reserved.read_text()) < 16:
            pytest.skip("no huge pages to be had: memory is fragmented")
    except OSError as error:
        pytest.skip(f"no huge pages to be had: {error}")
    yield
    reserved.write_text(before)
