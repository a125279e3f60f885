import numpy as np
import pytest
from real_qemu import PAGE_SIZE, Qemu

from pysampler import Measurement, core
from pysampler.units import MIB

pytestmark = pytest.mark.integration

# So few that QEMU draws nothing from its blocks of 128 KiB, whose content we do not know.
SAMPLE_PAGES = 8191
LENGTHS = {"ram0": 256 * MIB, "ram1": 96 * MIB, "pc.bios": MIB // 4}


@pytest.fixture
def rng():
    return np.random.default_rng(20230518)


@pytest.fixture
def bios(tmp_path, rng):
    """Random pages instead of a BIOS: QEMU samples that block too, and nothing runs it."""
    path = tmp_path / "bios"
    path.write_bytes(rng.bytes(LENGTHS["pc.bios"]))
    return path


@pytest.fixture
def qemu(tmp_path, bios):
    backend = "memory-backend-memfd,share=on"
    with Qemu(
        tmp_path,
        *("-machine", "q35", "-bios", str(bios), "-m", "352M", "-smp", "2"),
        *("-object", f"{backend},id=ram0,size=256M", "-numa", "node,cpus=0,memdev=ram0"),
        *("-object", f"{backend},id=ram1,size=96M", "-numa", "node,cpus=1,memdev=ram1"),
    ) as running:
        yield running


def our_hashes(hasher, pages, traced):
    vfns = np.array([page.vfn for page in traced], dtype=np.uint64)
    hashes = np.empty_like(vfns)
    assert core.hash_mapped(hasher, pages, PAGE_SIZE, vfns, hashes) == len(vfns)
    return hashes.tolist()


def test_every_hash_that_qemu_traces_equals_ours_before_and_after_writes(qemu, bios, rng):
    """Every (block, vfn, hash) of both of QEMU's passes; pages are written between the two."""
    lengths = qemu.ramblocks()
    assert {idstr: lengths[idstr] for idstr in LENGTHS} == LENGTHS
    n_samples = sum(length * SAMPLE_PAGES >> 30 for length in lengths.values())

    ram = {idstr: qemu.shared_memory(lengths[idstr]) for idstr in ("ram0", "ram1")}
    for pages in ram.values():
        n_filled = len(pages) * 3 // 4  # the rest stays zero
        pages[:n_filled] = np.frombuffer(rng.bytes(n_filled * PAGE_SIZE), np.uint8).reshape(
            -1, PAGE_SIZE
        )
    before = {idstr: pages.copy() for idstr, pages in ram.items()}
    before["pc.bios"] = np.fromfile(bios, np.uint8).reshape(-1, PAGE_SIZE)
    written = {idstr: rng.random(len(pages)) < 0.3 for idstr, pages in ram.items()}
    written["pc.bios"] = np.zeros(LENGTHS["pc.bios"] // PAGE_SIZE, dtype=bool)

    qemu.command("calc-dirty-rate", calc_time=2, sample_pages=SAMPLE_PAGES)
    qemu.wait_for_traced(n_samples)
    for idstr, pages in ram.items():
        # One byte is enough, and CRC-32 is sure to notice it.
        vfns = np.flatnonzero(written[idstr])
        pages[vfns, rng.integers(0, PAGE_SIZE, len(vfns))] ^= 0x5A
    assert len(qemu.traced()) == n_samples, "the second pass had begun before the writes ended"
    reply = qemu.wait_measured()
    after = {**before, **ram}

    traced = qemu.traced()
    assert len(traced) == 2 * n_samples
    baseline, compare = traced[:n_samples], traced[n_samples:]
    assert [page[:2] for page in baseline] == [page[:2] for page in compare]
    hasher = core.Hasher(qemu.page_hash())
    n_dirty = 0
    assert {page.idstr for page in baseline} == set(LENGTHS)
    for idstr, length in LENGTHS.items():
        of_block = [page.idstr == idstr for page in baseline]
        first = [page for page, mine in zip(baseline, of_block, strict=True) if mine]
        second = [page for page, mine in zip(compare, of_block, strict=True) if mine]
        assert len(first) == length * SAMPLE_PAGES >> 30
        assert [page.hash for page in first] == our_hashes(hasher, before[idstr], first)
        assert [page.hash for page in second] == our_hashes(hasher, after[idstr], second)
        dirty = [a.hash != b.hash for a, b in zip(first, second, strict=True)]
        assert dirty == [bool(written[idstr][page.vfn]) for page in first]
        n_dirty += sum(dirty)

    # QEMU divides by the time that passed, which is a little more than was asked for.
    ours = Measurement(
        page_size=PAGE_SIZE,
        periods=(2000,),
        n_dirty_pages=(n_dirty,),
        n_sampled_pages=n_samples,
        n_zero_pages=0,
        n_total_pages=sum(n for n in lengths.values() if n >= 128 << 10) // PAGE_SIZE,
        calc_time_ms=2000,
    ).dirty_rate
    assert ours - 2 - ours // 50 <= reply["dirty-rate"] <= ours
