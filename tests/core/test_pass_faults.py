import contextlib
import ctypes
import itertools
import mmap
import os
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import xxhash

from pysampler import core
from pysampler.core import Hash, Hasher

PAGE = mmap.PAGESIZE
XXH3 = Hasher(Hash.XXH3)


def vfn_array(vfns):
    return np.asarray(vfns, dtype=np.uint64)


def random_bytes(n, seed=1):
    return np.random.default_rng(seed).bytes(n)


def oracle(content, page_size, vfns):
    return [xxhash.xxh3_64_intdigest(content[v * page_size : (v + 1) * page_size]) for v in vfns]


# ---- a file truncated under its mapping ----


@contextlib.contextmanager
def truncated_mapping(n_pages, n_left, page_size=PAGE):
    """A mapping of n_pages of which only n_left are left in the file, and their content."""
    content = random_bytes(n_pages * page_size)
    fd = os.memfd_create("truncated")
    try:
        os.write(fd, content)
        with mmap.mmap(fd, len(content), prot=mmap.PROT_READ) as mapping:
            os.truncate(fd, n_left * page_size)
            yield mapping, content
    finally:
        os.close(fd)


# ISA-L comes with an extra; it is called as zlib is.
@pytest.mark.parametrize("hash_", [hash_ for hash_ in Hash if hash_ is not Hash.CRC32_ISAL])
@pytest.mark.parametrize("prefetch", [True, False])
def test_a_pass_over_a_truncated_file_ends_before_the_first_lost_page(hash_, prefetch):
    vfns = vfn_array([3, 0, 12, 3, 13, 1, 14])
    hashes = np.full(7, 99, dtype=np.uint64)
    with truncated_mapping(31, 13) as (mapping, _):
        done = core.hash_mapped(Hasher(hash_, prefetch=prefetch), mapping, PAGE, vfns, hashes)
    assert done == 4
    assert hashes[0] == hashes[3] != 99
    assert hashes[4:].tolist() == [99] * 3


def test_the_pages_before_the_lost_one_are_hashed_right():
    vfns = [5, 0, 30, 2, 31, 1]
    hashes = np.zeros(6, dtype=np.uint64)
    with truncated_mapping(65, 31) as (mapping, content):
        assert core.hash_mapped(XXH3, mapping, PAGE, vfn_array(vfns), hashes) == 4
    assert oracle(content, PAGE, vfns[:4]) == hashes[:4].tolist()


def test_a_page_of_which_only_the_end_is_lost_counts_as_lost():
    hashes = np.zeros(2, dtype=np.uint64)
    with truncated_mapping(32, 17) as (mapping, _):
        assert core.hash_mapped(XXH3, mapping, 16 * PAGE, vfn_array([0, 1]), hashes) == 1


def test_a_pass_after_a_fault_is_like_any_other():
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    hashes = np.zeros(3, dtype=np.uint64)
    with truncated_mapping(8, 3) as (mapping, content):
        for _ in range(129):
            assert core.hash_mapped(XXH3, mapping, PAGE, vfn_array([7]), hashes[:1]) == 0
            assert core.hash_mapped(XXH3, mapping, PAGE, vfn_array([0, 1, 2]), hashes) == 3
    assert oracle(content, PAGE, [0, 1, 2]) == hashes.tolist()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask


def test_a_blocked_sigbus_does_not_make_a_fault_deadly():
    hashes = np.zeros(1, dtype=np.uint64)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGBUS])
    try:
        with truncated_mapping(2, 1) as (mapping, _):
            assert core.hash_mapped(XXH3, mapping, PAGE, vfn_array([1]), hashes) == 0
        assert signal.SIGBUS in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def in_threads(n, work):
    """Run work(i) in n threads at once and raise what they raised."""
    barrier, failures = threading.Barrier(n), []

    def run(i):
        barrier.wait()
        try:
            work(i)
        except BaseException as error:  # noqa: BLE001 raised again below, in the test's thread
            failures.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_threads_that_fault_at_the_same_time_each_get_their_own_count():
    with truncated_mapping(1025, 513) as (mapping, content):
        right = oracle(content, PAGE, range(513))

        def work(i):
            good = np.random.default_rng(i).integers(0, 513, 65)
            for turn in range(257):
                n_good = (turn + i) % 65
                vfns = np.append(good[:n_good], [513 + turn, 0])
                hashes = np.zeros(len(vfns), dtype=np.uint64)
                assert core.hash_mapped(XXH3, mapping, PAGE, vfn_array(vfns), hashes) == n_good
                assert hashes[:n_good].tolist() == [right[v] for v in good[:n_good]]

        in_threads(8, work)


def test_a_file_that_shrinks_and_grows_during_passes_never_kills():
    n_pages = 257
    fd = os.memfd_create("breathing")
    try:
        os.truncate(fd, n_pages * PAGE)
        with mmap.mmap(fd, n_pages * PAGE, prot=mmap.PROT_READ) as mapping:
            stop = threading.Event()
            short = 0

            def breathe():
                for length in itertools.cycle([3, n_pages]):
                    os.truncate(fd, length * PAGE)
                    if stop.is_set():
                        return

            breather = threading.Thread(target=breathe)
            breather.start()
            try:
                hashes = np.zeros(n_pages, dtype=np.uint64)
                # As many passes as it takes to meet the file at its shortest.
                while short < 65:
                    done = core.hash_mapped(XXH3, mapping, PAGE, vfn_array(range(n_pages)), hashes)
                    assert 3 <= done <= n_pages
                    short += done < n_pages
            finally:
                stop.set()
                breather.join()
    finally:
        os.close(fd)


# ---- the SIGBUS of others ----

# Each piece runs in its own process, which says "survived" unless a signal ends it.
PREAMBLE = """
import faulthandler, mmap, os, resource, signal
import numpy as np
from pysampler import core

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
fd = os.memfd_create("truncated")
os.truncate(fd, 3 * mmap.PAGESIZE)
mapping = mmap.mmap(fd, 3 * mmap.PAGESIZE, prot=mmap.PROT_READ)
os.truncate(fd, mmap.PAGESIZE)

def a_pass():
    hashes = np.zeros(2, dtype=np.uint64)
    vfns = np.arange(2, dtype=np.uint64)
    assert core.hash_mapped(core.Hasher(core.Hash.XXH3), mapping, mmap.PAGESIZE, vfns, hashes) == 1

def foreign_fault():
    mapping[mmap.PAGESIZE]

def sent():
    signal.raise_signal(signal.SIGBUS)
"""


def run(*pieces):
    # ASan has a SIGBUS handler of its own, which would be the "previous" one.
    asan = os.environ.get("ASAN_OPTIONS", "")
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "\n".join([PREAMBLE, *map(textwrap.dedent, pieces), "print('survived')"]),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "ASAN_OPTIONS": f"{asan}:handle_sigbus=0"},
    )


@pytest.mark.parametrize(
    "piece",
    [
        "a_pass(); foreign_fault()",
        "a_pass(); sent()",
        "signal.signal(signal.SIGBUS, signal.SIG_IGN); a_pass(); foreign_fault()",
        "a_pass(); signal.signal(signal.SIGBUS, signal.SIG_DFL); a_pass(); foreign_fault()",
    ],
)
def test_a_foreign_sigbus_still_kills(piece):
    ended = run(piece)
    assert (ended.returncode, ended.stdout) == (-signal.SIGBUS, "")


@pytest.mark.parametrize(
    "piece",
    [
        "faulthandler.enable(); a_pass(); {}",
        "a_pass(); faulthandler.enable(); {}",
        "a_pass(); faulthandler.enable(); a_pass(); {}",
        "faulthandler.enable(); a_pass(); faulthandler.enable(); a_pass(); {}",
    ],
)
@pytest.mark.parametrize("foreign", ["foreign_fault()", "sent()"])
def test_faulthandler_still_reports_a_foreign_sigbus_once(piece, foreign):
    ended = run(piece.format(foreign))
    assert (ended.returncode, ended.stdout) == (-signal.SIGBUS, "")
    assert ended.stderr.count("Fatal Python error: Bus error") == 1


@pytest.mark.parametrize(
    "piece",
    [
        "faulthandler.enable(); a_pass(); a_pass(); faulthandler.disable(); a_pass()",
        "a_pass(); faulthandler.enable(); a_pass(); faulthandler.disable(); a_pass()",
        "signal.signal(signal.SIGBUS, signal.SIG_IGN); a_pass(); sent(); a_pass()",
        """
        caught = []
        signal.signal(signal.SIGBUS, lambda number, frame: caught.append(number))
        a_pass(); sent(); a_pass(); sent(); a_pass()
        assert caught == [signal.SIGBUS] * 2
        """,
    ],
)
def test_a_pass_and_a_handler_of_the_program_do_not_disturb_each_other(piece):
    ended = run(piece)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "survived\n", "")


SIGACTION = """
import ctypes
SA_SIGINFO = 4
HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.c_void_p)

class Sigaction(ctypes.Structure):  # of the GNU C library
    _fields_ = [("handler", HANDLER), ("mask", ctypes.c_ulong * 16),
                ("flags", ctypes.c_int), ("restorer", ctypes.c_void_p)]

libc = ctypes.CDLL(None)
def install(handler, flags):
    libc.sigaction(signal.SIGBUS, ctypes.byref(Sigaction(handler, flags=flags)), None)
"""


def test_a_previous_handler_with_siginfo_gets_its_siginfo():
    ended = run(
        SIGACTION,
        """
        got = []
        handler = HANDLER(lambda number, info, context: got.append((number, info[0], info[2])))
        install(handler, SA_SIGINFO)
        a_pass()
        getattr(libc, "raise")(signal.SIGBUS)
        assert got == [(signal.SIGBUS, signal.SIGBUS, -6)], got  # SI_TKILL
        """,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "survived\n", "")


def test_handlers_that_change_during_passes_are_called_each_in_its_own_way():
    ended = run(
        SIGACTION,
        """
        import threading

        got = []
        PLAIN = ctypes.CFUNCTYPE(None, ctypes.c_int)
        plain = PLAIN(lambda number: got.append((number,)))
        with_info = HANDLER(lambda number, info, context: got.append((number, info[0], info[2])))
        actions = (ctypes.cast(plain, HANDLER), 0), (with_info, SA_SIGINFO)
        ended = threading.Event()

        def change():
            while not ended.is_set():
                for handler, flags in actions:
                    install(handler, flags)
                    a_pass()

        install(*actions[0])
        thread = threading.Thread(target=change)
        thread.start()
        for _ in range(2000):
            getattr(libc, "raise")(signal.SIGBUS)
        ended.set()
        thread.join()
        assert len(got) == 2000
        assert set(got) <= {(signal.SIGBUS,), (signal.SIGBUS, signal.SIGBUS, -6)}, set(got)
        """,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "survived\n", "")


# ---- another process's memory ----


@pytest.fixture
def holed(protect):
    """64 + 6 pages of this process, of which page 65 is not readable, and their content."""
    with mmap.mmap(-1, 70 * PAGE) as memory:
        content = random_bytes(70 * PAGE)
        memory.write(content)
        protect(memory, 65 * PAGE, PAGE)
        yield core.address_of(memory), content


def remote(address, vfns, *, page_size=PAGE, staging_pages=32, pid=None):
    hashes = np.full(len(vfns), 99, dtype=np.uint64)
    staging = bytearray(staging_pages * page_size)
    pid = os.getpid() if pid is None else pid
    done = core.hash_remote(XXH3, pid, address, page_size, vfn_array(vfns), staging, hashes)
    return done, hashes.tolist()


@pytest.mark.parametrize("staging_pages", [1, 2, 31, 64, 65, 100])
@pytest.mark.parametrize("n_good", [0, 1, 2, 30, 31, 32, 63, 64, 65, 127, 128, 129])
def test_a_remote_pass_ends_before_the_first_unreadable_page(holed, staging_pages, n_good):
    address, content = holed
    good = np.random.default_rng(n_good).integers(0, 65, n_good).tolist()
    done, hashes = remote(address, [*good, 65, 3], staging_pages=staging_pages)
    assert done == n_good
    assert hashes == [*oracle(content, PAGE, good), 99, 99]


@pytest.mark.parametrize("staging_pages", [1, 7, 64])
def test_a_remote_pass_over_readable_pages_is_complete(holed, staging_pages):
    address, content = holed
    vfns = np.random.default_rng(5).integers(0, 65, 1000).tolist()
    done, hashes = remote(address, vfns, staging_pages=staging_pages)
    assert (done, hashes) == (1000, oracle(content, PAGE, vfns))


@pytest.mark.parametrize("staging_pages", [1, 3])
def test_a_remote_page_with_an_unreadable_part_is_unreadable(holed, staging_pages):
    address, content = holed
    vfns = [2, 0, 3, 4, 1]  # of 16 pages each; page 65 lies in vfn 4
    done, hashes = remote(address, vfns, page_size=16 * PAGE, staging_pages=staging_pages)
    assert done == 3
    assert hashes == [*oracle(content, 16 * PAGE, vfns[:3]), 99, 99]


def test_an_address_beyond_the_address_space_is_unreadable():
    assert remote(1 << 63, [0]) == (0, [99])
    assert remote(0, [(1 << 52) - 1, 1 << 40]) == (0, [99, 99])


def test_a_pass_over_a_process_that_has_ended_says_so():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with pytest.raises(ProcessLookupError, match=f"process {ended.pid}"):
        remote(0, [0], pid=ended.pid)


CHILD = """
import ctypes, mmap, sys
memory = mmap.mmap(-1, 64 * mmap.PAGESIZE)
memory.write(b"x" * len(memory))
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
sys.stdin.read()
"""


def test_a_process_that_ends_during_passes_ends_them():
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        address = int(child.stdout.readline())
        right = oracle(b"x" * 64 * PAGE, PAGE, range(64))
        killer = threading.Timer(0.05, child.kill)
        killer.start()
        with pytest.raises(ProcessLookupError):
            while True:
                done, hashes = remote(address, range(64), pid=child.pid)
                assert hashes[:done] == right[:done]
        killer.join()


def test_memory_that_is_unmapped_during_passes_shortens_them():
    length = 257 * PAGE
    memory = mmap.mmap(-1, length)
    memory.write(b"x" * length)
    address = core.address_of(memory)
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    stop = threading.Event()

    def breathe():
        while not stop.is_set():
            for protection in (mmap.PROT_READ, 0):
                libc.mprotect(address + 3 * PAGE, length - 3 * PAGE, protection)

    right = oracle(b"x" * length, PAGE, range(257))
    breather = threading.Thread(target=breathe)
    breather.start()
    try:
        counts = []
        # As many passes as it takes to meet the memory gone.
        while sum(done < 257 for done in counts) < 65:
            done, hashes = remote(address, range(257))
            assert hashes[:done] == right[:done]
            counts.append(done)
    finally:
        stop.set()
        breather.join()
    assert min(counts) >= 3


# ---- a file read by pread ----


@pytest.fixture
def short_file(tmp_path):
    """A file of 12 pages and a half."""
    content = random_bytes(12 * PAGE + PAGE // 2)
    path = tmp_path / "ram"
    path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    yield fd, content
    os.close(fd)


def by_pread(fd, vfns, page_size=PAGE):
    hashes = np.full(len(vfns), 99, dtype=np.uint64)
    done = core.hash_file(XXH3, fd, page_size, vfn_array(vfns), bytearray(page_size), hashes)
    return done, hashes.tolist()


@pytest.mark.parametrize("lost", [12, 13, 1 << 40])
def test_a_page_past_the_end_of_the_file_ends_the_pass(short_file, lost):
    fd, content = short_file
    done, hashes = by_pread(fd, [11, 0, 0, lost, 1])
    assert done == 3
    assert hashes == [*oracle(content, PAGE, [11, 0, 0]), 99, 99]


def test_holes_of_a_file_are_hashed_as_zeros_and_stay_holes(tmp_path):
    with open(tmp_path / "sparse", "wb+", buffering=0) as file:
        file.truncate(31 * PAGE)
        blocks = os.fstat(file.fileno()).st_blocks
        done, hashes = by_pread(file.fileno(), [30, 2])
        assert (done, hashes) == (2, oracle(bytes(31 * PAGE), PAGE, [30, 2]))
        assert os.fstat(file.fileno()).st_blocks == blocks


def test_an_unreadable_descriptor_is_an_os_error(tmp_path):
    with open(tmp_path / "out", "wb") as file, pytest.raises(OSError, match="Bad file descriptor"):
        by_pread(file.fileno(), [0])
