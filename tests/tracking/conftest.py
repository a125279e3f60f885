import pytest

from pysampler.tracking import probe


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
