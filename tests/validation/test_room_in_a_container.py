"""What `validate` admits and what the guest refuses are one answer, also in a container."""

import pytest

from pysampler.errors import SourceError
from pysampler.guest import BlockSpec, allocate
from pysampler.host import machine
from pysampler.units import GIB, MIB
from pysampler.validation.experiment import refuse_what_does_not_fit
from pysampler.validation.watched_guest import memory_needed


@pytest.fixture
def limited(monkeypatch):
    """Return a function that puts this process into a cgroup with so many bytes left."""

    def limit(left):
        files = {
            "/proc/meminfo": f"MemAvailable: {1 << 30} kB\n",
            "/proc/self/cgroup": "0::/container\n",
            "/sys/fs/cgroup/container/memory.max": f"{left + GIB}\n",
            "/sys/fs/cgroup/container/memory.current": f"{GIB}\n",
        }
        monkeypatch.setattr(machine, "text_of", lambda path: files.get(path, ""))

    return limit


def test_what_does_not_fit_into_the_container_is_refused_by_both(limited):
    limited(512 * MIB)
    with pytest.raises(SourceError, match="and 512 MiB are free"):
        refuse_what_does_not_fit((GIB,))
    with pytest.raises(SourceError, match="and 512 MiB are available"):
        allocate([BlockSpec("pc.ram", GIB)], truth=True)


@pytest.mark.parametrize("size", [64 * MIB, GIB, 24 * GIB])
def test_what_validate_just_admits_the_guest_takes(size, limited):
    limited(memory_needed(size))
    refuse_what_does_not_fit((size,))
    allocate([BlockSpec("pc.ram", size)], truth=True, zero=1.0).close()
    limited(memory_needed(size) - 1)
    with pytest.raises(SourceError):
        refuse_what_does_not_fit((size,))
