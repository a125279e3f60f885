import os
import zlib

import numpy as np
import pytest

from pysampler.errors import MissingFeatureError, SourceError, UsageError
from pysampler.guest import BlockSpec, Content, allocate
from pysampler.guest import ram as ram_module

MIB = 1 << 20


@pytest.fixture
def make_ram():
    made = []

    def make(*specs, **options):
        made.append(allocate([BlockSpec(*spec) for spec in specs], **options))
        return made[-1]

    yield make
    for ram in made:
        ram.close()


def content(block):
    return np.frombuffer(block.memory, dtype=np.uint8).reshape(-1, 4096)


def test_the_zero_part_is_a_hole_and_the_rest_is_not(make_ram):
    ram = make_ram(("pc.ram", 1025 * 4096), ("vga", 31 * 4096), zero=0.6)
    for block, filled in zip(ram.blocks, (410, 12), strict=True):
        assert content(block)[:filled].any(axis=1).all()
        assert os.fstat(block.fd).st_blocks * 512 == filled * 4096
        assert not content(block)[filled:].any()


def test_memfds_are_named_and_sealed_as_qemus(make_ram):
    (block,) = make_ram(("pc.ram", 4096)).blocks
    assert (
        os.readlink(f"/proc/self/fd/{block.fd}") == "/memfd:memory-backend-memfd:pc.ram (deleted)"
    )
    with pytest.raises(PermissionError):
        os.ftruncate(block.fd, 0)


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [(Content.RANDOM, 0.99, 1.0), (Content.MIXED, 1.3, 1.5), (Content.TEXT, 2.1, 2.4)],
)
def test_content_compresses_as_documented(make_ram, kind, low, high):
    (block,) = make_ram(("pc.ram", 513 * 4096), content=kind, seed=1).blocks
    compressed = sum(len(zlib.compress(page.tobytes(), 1)) for page in content(block))
    assert low < block.length / compressed < high


def test_content_is_a_function_of_the_seed_alone(make_ram):
    one, again, other = (
        bytes(make_ram(("pc.ram", 70 * MIB), content=Content.MIXED, seed=seed).blocks[0].memory)
        for seed in (1, 1, 2)
    )
    assert one == again
    assert one != other


def test_more_memory_than_there_is_is_refused_before_any_is_taken(make_ram, monkeypatch):
    monkeypatch.setattr(ram_module, "available_memory", lambda: 100 * MIB)
    with pytest.raises(SourceError, match="can grow to 101 MiB and 100 MiB are available"):
        make_ram(("pc.ram", 37 * MIB))
    make_ram(("pc.ram", 37 * MIB), reachable=36 * MIB, zero=1.0)


def test_huge_pages_that_are_not_there_are_refused_with_the_cure(make_ram, monkeypatch):
    monkeypatch.setattr(ram_module, "free_huge_pages", lambda: 1)
    with pytest.raises(MissingFeatureError, match=r"needs 3 free .* sysctl vm\.nr_hugepages=3"):
        make_ram(("pc.ram", 6 * MIB), huge=True)


@pytest.mark.skipif(ram_module.free_huge_pages() < 4, reason="vm.nr_hugepages: fewer than 4 free")
def test_huge_pages_are_used(make_ram):
    (block,) = make_ram(("pc.ram", 8 * MIB), huge=True, zero=0.5).blocks
    assert block.page_size == 2 * MIB
    assert os.fstat(block.fd).st_blocks * 512 == 4 * MIB
    assert content(block)[:1024].any(axis=1).all()


@pytest.mark.parametrize(
    ("specs", "huge", "message"),
    [
        ([("pc.ram", 5000)], False, "pc.ram: 5000 bytes are no whole number of pages of 4 KiB"),
        ([("pc.ram", 0)], False, "pc.ram: 0 bytes"),
        ([("pc.ram", 3 * MIB)], True, "pages of 2 MiB"),
        ([("pc.ram", 4096), ("pc.ram", 4096)], False, "pc.ram: two blocks of this name"),
    ],
)
def test_impossible_blocks_are_refused(make_ram, specs, huge, message):
    with pytest.raises(UsageError, match=message):
        make_ram(*specs, huge=huge)


def test_a_cgroups_limit_counts_as_memory_that_is_there():
    assert 0 < ram_module.available_memory() <= os.sysconf("SC_PHYS_PAGES") * 4096
