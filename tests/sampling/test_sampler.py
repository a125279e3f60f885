import os

import numpy as np
import pytest
from invented import PAGE, ScriptedClock, fill_page

import pysampler
from pysampler import Mode, Status
from pysampler.errors import MissingFeatureError, SourceError, UsageError
from pysampler.memory.source import buffer_block, file_block
from pysampler.sampling.page_sampling import PageSampling
from pysampler.sampling.passes import PassCount
from pysampler.sampling.plan import PROFILES, draw_plan
from pysampler.sampling.sampler import Sampler
from pysampler.vector.interrupted import MeasurementInterruptedError

N_PAGES = 4097


def filled(n_pages=N_PAGES):
    memory = np.empty((n_pages, PAGE), dtype=np.uint8)
    for page in memory:
        page[:] = np.frombuffer(fill_page(7), np.uint8)
    memory[:, 0] = np.arange(n_pages) % 251
    return memory


def measured(blocks, calc_time_ms=1000, writes=None, profile="qemu", threads=1, seed=3):
    observer = PageSampling(
        blocks, profile=PROFILES[profile], sample_pages=16384, seed=seed, threads=threads
    )
    with Sampler(observer, calc_time_ms, "millisecond", ScriptedClock(writes)) as sampler:
        return list(sampler)


def sampled_vfns(n_pages=N_PAGES, profile="qemu", seed=3):
    plan = draw_plan([n_pages * PAGE], profile=PROFILES[profile], sample_pages=16384, seed=seed)
    return plan.vfns[0].astype(int)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("threads", [1, 3])
def test_exactly_the_written_samples_are_dirty(profile, threads):
    memory = filled()
    vfns = sampled_vfns(profile=profile)
    written = np.arange(0, N_PAGES, 3)

    def write():
        memory[written, 5] ^= 1

    last = measured([buffer_block(memory)], 250, {200: write}, profile, threads)[-1]
    assert last.n_dirty_pages == (0, int(np.isin(vfns, written).sum()))


def test_zero_pages_are_counted_in_the_baseline_only():
    memory = filled()
    memory[::2] = 0
    vfns = sampled_vfns()

    def clear():
        memory[:] = 0

    last = measured([buffer_block(memory)], 250, {100: clear})[-1]
    assert last.n_zero_pages == int((vfns % 2 == 0).sum())
    assert last.n_dirty_pages[0] == len(vfns) - last.n_zero_pages


def test_a_page_that_is_changed_back_is_clean_again():
    memory = filled()

    def flip():
        memory[:, 9] ^= 0xFF

    vector = measured([buffer_block(memory)], 500, {130: flip, 300: flip})[-1]
    assert vector.n_dirty_pages == (0, vector.n_sampled_pages, 0)


def test_each_period_comes_as_it_is_measured():
    vectors = measured([buffer_block(filled())], 1000)
    assert [vector.periods for vector in vectors] == [
        (125, 250, 375, 500, 1000)[: n + 1] for n in range(5)
    ]
    assert [vector.status for vector in vectors] == [Status.MEASURING] * 4 + [Status.MEASURED]
    assert [vector.dirty_rate for vector in vectors] == [None] * 4 + [0]


def test_a_late_pass_reports_its_real_period():
    class LateClock(ScriptedClock):
        def wait_until(self, deadline_ns):
            super().wait_until(deadline_ns + 1_700_000)

    observer = PageSampling([buffer_block(filled())], profile=PROFILES["qemu"], sample_pages=16384)
    with Sampler(observer, 250, clock=LateClock()) as sampler:
        *_, vector = sampler
    assert vector.periods == (126, 251)
    assert vector.details["periods-ns"] == [126_700_000, 251_700_000]


def test_periods_rise_even_after_a_stall():
    class StalledClock(ScriptedClock):
        def wait_until(self, deadline_ns):
            super().wait_until(deadline_ns + (900_000_000 if self._now_ns < 1_200_000_000 else 0))

    observer = PageSampling([buffer_block(filled())], profile=PROFILES["qemu"], sample_pages=16384)
    with Sampler(observer, 1500, clock=StalledClock()) as sampler:
        *_, vector = sampler
    assert vector.periods == (1025, 1026, 1027, 1028, 1029, 1030, 1500)


def test_memory_of_which_nothing_can_be_read_is_refused():
    class Blind:
        mode, n_total_pages, n_sampled_pages, sample_pages = Mode.PAGE_SAMPLING, 9, 5, 512

        def warm_up(self):
            pass

        close = warm_up

        def baseline(self):
            return PassCount(0, 5)

    with pytest.raises(SourceError, match="no page can be read without disturbing the guest"):
        list(Sampler(Blind(), 50, clock=ScriptedClock()))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(5, "Input/output error"), "Input/output error"),
        (SourceError("this host swaps"), "this host swaps"),
        (MissingFeatureError("no more"), "no more"),
        (MemoryError(), "not enough memory"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize(("at_ms", "periods"), [(100, ()), (200, (125,))])
def test_a_measurement_that_is_failed_keeps_its_periods(error, words, at_ms, periods):
    observer = PageSampling([buffer_block(filled())], profile=PROFILES["qemu"], sample_pages=16384)

    def fail():
        def compare():
            raise error

        observer.compare = compare

    with pytest.raises(MeasurementInterruptedError, match=words) as caught:
        list(Sampler(observer, 500, clock=ScriptedClock({at_ms: fail})))
    assert caught.value.measurement.periods == periods


def test_a_part_of_a_memfd_that_begins_anywhere_is_sampled(memfd):
    _, memory = memfd(4 << 20)
    memory[:] = b"x" * len(memory)
    for begin in (1, 4095, 4096, 12288):
        vector = pysampler.sample(memoryview(memory)[begin:], calc_time="50ms", sample_pages=1024)
        assert (vector.n_sampled_pages, vector.n_zero_pages) == (3, 0)


def test_a_sampler_measures_once():
    observer = PageSampling([buffer_block(filled())], profile=PROFILES["qemu"], sample_pages=16384)
    with Sampler(observer, 50, clock=ScriptedClock()) as sampler:
        list(sampler)
        with pytest.raises(RuntimeError, match="measures once"):
            next(iter(sampler))


def test_a_file_truncated_between_passes_keeps_the_periods_before(memfd):
    fd, memory = memfd(N_PAGES * PAGE)
    memory[:] = bytes(filled())
    writes = {200: lambda: os.ftruncate(fd, PAGE)}
    observer = PageSampling(
        [file_block(f"/proc/self/fd/{fd}")], profile=PROFILES["qemu"], sample_pages=16384
    )
    with (
        Sampler(observer, 500, clock=ScriptedClock(writes)) as sampler,
        pytest.raises(MeasurementInterruptedError, match=r"was truncated: 4 KiB") as caught,
    ):
        list(sampler)
    partial = caught.value.measurement
    assert (partial.periods, partial.status) == ((125,), Status.MEASURING)
    assert pysampler.Measurement.from_json(partial.to_json()) == partial


def test_holes_of_a_memfd_are_zero_pages_and_stay_holes(memfd):
    fd, memory = memfd(N_PAGES * PAGE)
    data = np.arange(0, N_PAGES, 5)
    for vfn in data:
        memory[vfn * PAGE : (vfn + 1) * PAGE] = fill_page(int(vfn))
    before = os.fstat(fd).st_blocks
    vfns = sampled_vfns()

    def fill_a_hole():
        memory[1 * PAGE : 2 * PAGE] = b"1" * PAGE

    vector = measured([file_block(f"/proc/self/fd/{fd}")], 250, {200: fill_a_hole})[-1]
    assert vector.n_zero_pages == int((~np.isin(vfns, data)).sum())
    assert vector.n_dirty_pages == (0, int((vfns == 1).sum()))
    assert os.fstat(fd).st_blocks == before + 8


def test_a_punched_page_is_dirty(memfd):
    fd, memory = memfd(N_PAGES * PAGE)
    memory[:] = bytes(filled())
    libc_punch = 0x03  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    import ctypes

    def punch():
        libc = ctypes.CDLL(None, use_errno=True)
        offset, length = ctypes.c_int64(0), ctypes.c_int64(100 * PAGE)
        assert libc.fallocate(fd, libc_punch, offset, length) == 0

    vfns = sampled_vfns()
    vector = measured([file_block(f"/proc/self/fd/{fd}")], 250, {200: punch})[-1]
    assert vector.n_dirty_pages == (0, int((vfns < 100).sum()))


def test_details_say_how_it_was_measured():
    vector = measured([buffer_block(filled(), "pc.ram")], 250, threads=2)[-1]
    details = vector.details
    assert details["blocks"] == [
        {
            "idstr": "pc.ram",
            "used-length": N_PAGES * PAGE,
            "page-size": 4096,
            "access": "buffer",
            "n-sampled-pages": vector.n_sampled_pages,
        }
    ]
    assert (details["profile"], details["hash"], details["seed"]) == ("qemu", "xxh64", 3)
    assert (details["threads"], details["unreadable"]) == (2, [0, 0])
    assert len(details["passes-ns"]) == len(details["periods-ns"]) == 2


def test_the_interval_is_wilsons():
    memory = filled()

    def write():
        memory[:2048, 0] ^= 1

    vector = measured([buffer_block(memory)], 125, {100: write})[-1]
    # Wilson, by its textbook form.
    n, z = vector.n_sampled_pages, 1.959963984540054
    p = vector.n_dirty_pages[0] / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    interval = vector.details["interval"]
    assert interval["dirty-pages-low"] == [int((centre - half) * N_PAGES)]
    assert interval["dirty-pages-high"] == [int((centre + half) * N_PAGES) + 1]


@pytest.mark.parametrize("calc_time", [0, 49, 4 * 3600 * 1000 + 1])
def test_a_calc_time_out_of_range_is_refused(calc_time):
    with pytest.raises(UsageError, match="calc-time must be between 50 ms and 4 h"):
        Sampler(None, calc_time)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sample_pages": 100}, "sample-pages must be between 128 and 16384"),
        ({"profile": "slow"}, "profile must be one of"),
        ({"seed": -1}, "seed must be between"),
        ({"threads": 0}, "threads must be between"),
        ({"calc_time": "soon"}, "calc-time: 'soon' is not a duration"),
        ({"calc_time": 0.01}, "calc-time must be between"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        pysampler.sample(bytearray(1 << 21), **{"calc_time": "50ms", **arguments})


def test_memory_too_small_for_one_sample_names_the_cure():
    with pytest.raises(SourceError, match="raise sample-pages to 1024 or more"):
        pysampler.sample(bytearray(1 << 20), calc_time="50ms")


def test_a_block_below_128_kib_is_skipped():
    with pytest.raises(SourceError, match="no RAMBlock of at least 128 KiB"):
        pysampler.sample(bytearray(127 << 10), calc_time="50ms")


def test_what_is_no_buffer_is_refused():
    with pytest.raises(UsageError, match="cannot sample int"):
        pysampler.sample(3)


def test_an_unaligned_buffer_is_sampled_too():
    memory = memoryview(bytearray(b"x" * ((2 << 20) + 1)))[1:]
    assert pysampler.sample(memory, calc_time="50ms").n_sampled_pages == 1
