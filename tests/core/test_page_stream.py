"""Pages and messages through a socketpair: what arrives, how many bytes it takes, what ends it."""

import mmap
import os
import socket
import threading
import time

import numpy as np
import pytest

from pysampler import core
from pysampler.core import PageReceiver, PageSender, ReceivedBlock, SendEnd, SentBlock
from pysampler.errors import FormatError

NEVER = 2**63 - 1
PAGE = 4096
KIND, ITERATION_END = 1, core.message_bytes(2, bytes(10))
LIMITS = {1: 1 << 20, 2: 10}
BEGIN = core.message_bytes(KIND, b"begin")


def ones(n_pages):
    return np.full(-(-n_pages // 64), 2**64 - 1, dtype=np.uint64)


def bits(*pages, n):
    words = np.zeros(-(-n // 64), dtype=np.uint64)
    for page in pages:
        words[page // 64] |= np.uint64(1 << page % 64)
    return words


def random_pages(memory, first, n):
    memory[first * PAGE : (first + n) * PAGE] = np.random.default_rng(first).bytes(n * PAGE)


@pytest.fixture
def ends():
    pair = socket.socketpair()
    yield pair
    for end in pair:
        end.close()


class Drain(threading.Thread):
    """Reads a socket to its end."""

    def __init__(self, end):
        super().__init__()
        self.end, self.data = end, b""
        self.start()

    def run(self):
        parts = []
        while part := self.end.recv(1 << 20):
            parts.append(part)
        self.data = b"".join(parts)

    def all_of(self, sending):
        sending.shutdown(socket.SHUT_WR)
        self.join()
        return self.data


class Destination(threading.Thread):
    """Receives to the end of the stream, or to an error."""

    def __init__(self, end, blocks):
        super().__init__()
        self.receiver = PageReceiver(end.fileno(), blocks, LIMITS)
        self.messages, self.error = [], None
        self.start()

    def run(self):
        try:
            while message := self.receiver.receive():
                self.messages.append(message)
        except (FormatError, OSError) as error:
            self.error = error


class Guest:
    """Blocks of memory, at the source and at the destination."""

    def __init__(self, memfd, *sizes):
        self.sent, self.received, self.sources, self.targets, self.fds = [], [], [], [], []
        for i, n in enumerate(sizes):
            (fd, source), (target_fd, target) = memfd(n * PAGE), memfd(n * PAGE)
            self.fds.append((fd, target_fd))
            name = f"block{i}"
            self.sources.append(source)
            self.targets.append(target)
            self.sent.append(SentBlock(name, core.address_of(source), ones(n), n, fd))
            self.received.append(ReceivedBlock(name, core.address_of(target), n))


@pytest.fixture
def make_guest(memfd):
    return lambda *sizes: Guest(memfd, *sizes)


def test_all_pages_arrive_and_messages_between_them(make_guest, ends):
    guest = make_guest(5000, 67)
    for source, n in zip(guest.sources, (5000, 67), strict=True):
        for first in range(0, n - 7, 13):
            random_pages(source, first, 7)
    destination = Destination(ends[1], guest.received)
    sender = PageSender(ends[0].fileno(), guest.sent)
    sender.pending = 5067
    sender.put(BEGIN)
    assert sender.send(0, NEVER) is SendEnd.CLEAN
    sender.put(ITERATION_END)
    sender.flush()
    ends[0].shutdown(socket.SHUT_WR)
    destination.join()
    assert destination.error is None
    assert destination.messages == [(KIND, b"begin"), (2, bytes(10))]
    for source, target in zip(guest.sources, guest.targets, strict=True):
        assert source[:] == target[:]
    assert (sender.normal, sender.duplicate) == (
        destination.receiver.normal,
        destination.receiver.duplicate,
    )
    assert sender.normal + sender.duplicate == 5067
    assert sender.pending == 0
    assert not any(block.dirty[: block.n_pages // 64].any() for block in guest.sent)


@pytest.mark.parametrize(
    ("mib", "pages"), [(16, 416), (24, 640), (32, 832), (48, 1248), (64, 1664)]
)
def test_a_window_has_as_many_pages_and_bytes_as_qemus(make_guest, ends, mib, pages):
    guest = make_guest(5000)
    random_pages(guest.sources[0], 0, 5000)
    drain = Drain(ends[1])
    sender = PageSender(ends[0].fileno(), guest.sent)
    # QEMU's first record in a stream names its block, too: the window is a later one.
    sender.send(1, NEVER)
    sender.used = 0
    ram_before = sender.ram_bytes
    before = sender.normal
    assert sender.send((mib << 20) // 10, NEVER) is SendEnd.LIMIT
    sender.put(ITERATION_END)
    sender.flush()
    assert sender.normal - before == pages
    assert sender.used == pages * 4104 + 18
    assert sender.ram_bytes - ram_before == pages * 4104
    assert len(drain.all_of(ends[0])) == sender.transferred


def test_a_zero_page_is_nine_bytes_and_a_named_one_longer_by_its_name(make_guest, ends):
    guest = make_guest(300, 300)
    random_pages(guest.sources[1], 7, 1)
    drain = Drain(ends[1])
    sender = PageSender(ends[0].fileno(), guest.sent)
    assert sender.send(0, NEVER) is SendEnd.CLEAN
    sender.flush()
    named = 1 + len("block0")
    assert sender.used == 599 * 9 + 4104 + 2 * named == len(drain.all_of(ends[0]))
    assert (sender.normal, sender.duplicate) == (1, 599)


def test_records_alone_are_flushed_at_32768_bytes(make_guest, ends):
    guest = make_guest(3641)
    drain = Drain(ends[1])
    sender = PageSender(ends[0].fileno(), guest.sent)
    sender.send(0, NEVER)
    assert 32768 - 9 < sender.used <= 32768
    sender.flush()
    assert len(drain.all_of(ends[0])) == 3641 * 9 + 7


def test_the_scan_goes_on_where_it_was_and_round_again(make_guest, ends):
    guest = make_guest(100, 50)
    for source, n in zip(guest.sources, (100, 50), strict=True):
        random_pages(source, 0, n)
    drain = Drain(ends[1])
    sender = PageSender(ends[0].fileno(), guest.sent)
    sender.send(1, NEVER)  # pages 0 to 31
    assert sender.normal == 32
    assert core.mark_dirty(bits(3, 5, n=100), guest.sent[0].dirty) == 2
    assert core.mark_dirty(bits(3, 5, 99, n=100), guest.sent[0].dirty) == 0
    assert sender.send(0, NEVER) is SendEnd.CLEAN
    sender.flush()
    data = drain.all_of(ends[0])
    assert pages_in_order(data) == [
        *[("block0", page) for page in range(100)],
        *[("block1", page) for page in range(50)],
        ("block0", 3),
        ("block0", 5),
    ]


def pages_in_order(data):
    """Read a stream of batches alone, by the description in pysampler.h."""
    found, name, at = [], None, 0
    while at < len(data):
        end = at + (int.from_bytes(data[at : at + 8], "little") >> 8 & 0xFFFF)
        whole = 0
        while at < end:
            word = int.from_bytes(data[at : at + 8], "little")
            at += 8
            if word & 2:
                name = data[at + 1 : at + 1 + data[at]].decode()
                at += 1 + data[at]
            found.append((name, word >> 24))
            whole += not word & 1
            at += word & 1
        at += whole * PAGE
    return found


def test_it_is_late_enough_after_64_pages(make_guest, ends):
    guest = make_guest(200)
    drain = Drain(ends[1])
    sender = PageSender(ends[0].fileno(), guest.sent)
    assert sender.send(0, 0) is SendEnd.TIME
    assert sender.duplicate == 64
    assert sender.send(0, time.monotonic_ns()) is SendEnd.TIME
    assert sender.duplicate == 128
    assert sender.send(0, NEVER) is SendEnd.CLEAN
    drain.all_of(ends[0])


def test_holes_stay_holes_on_both_sides(make_guest, ends):
    guest = make_guest(2000)
    random_pages(guest.sources[0], 100, 3)
    destination = Destination(ends[1], guest.received)
    sender = PageSender(ends[0].fileno(), guest.sent)
    sender.put(BEGIN)
    sender.send(0, NEVER)
    sender.flush()
    ends[0].shutdown(socket.SHUT_WR)
    destination.join()
    for fd in guest.fds[0]:
        assert os.fstat(fd).st_blocks * 512 == 3 * PAGE


def test_a_page_that_has_become_zero_is_cleared(make_guest, ends):
    guest = make_guest(10)
    random_pages(guest.sources[0], 0, 10)
    destination = Destination(ends[1], guest.received)
    sender = PageSender(ends[0].fileno(), guest.sent)
    sender.put(BEGIN)
    sender.send(0, NEVER)
    guest.sources[0][4 * PAGE : 5 * PAGE] = bytes(PAGE)
    core.mark_dirty(bits(4, n=10), guest.sent[0].dirty)
    sender.send(0, NEVER)
    sender.flush()
    ends[0].shutdown(socket.SHUT_WR)
    destination.join()
    assert sender.duplicate == 1
    assert guest.targets[0][:] == guest.sources[0][:]


def test_pages_in_swap_or_written_by_another_mapping_are_sent_whole(make_guest, ends):
    guest = make_guest(40)
    # Written through the file, so that the sender's mapping has no page table entry yet.
    content = np.random.default_rng(1).bytes(PAGE)
    os.pwrite(guest.fds[0][0], content, 17 * PAGE)
    destination = Destination(ends[1], guest.received)
    sender = PageSender(ends[0].fileno(), guest.sent)
    sender.put(BEGIN)
    sender.send(0, NEVER)
    sender.flush()
    ends[0].shutdown(socket.SHUT_WR)
    destination.join()
    assert sender.normal == 1
    assert guest.targets[0][17 * PAGE : 18 * PAGE] == content


@pytest.mark.parametrize("n", [0, 1, 32768, 32769, 500_000])
def test_messages_of_any_length_arrive(ends, n):
    destination = Destination(ends[1], [])
    payload = bytes(range(256)) * (n // 256) + bytes(n % 256)
    sender = PageSender(ends[0].fileno(), [])
    sender.put(core.message_bytes(KIND, payload))
    sender.put(ITERATION_END)
    sender.flush()
    ends[0].shutdown(socket.SHUT_WR)
    destination.join()
    assert destination.messages == [(KIND, payload), (2, bytes(10))]
    assert sender.transferred == 8 + n + 18
    assert sender.send(0, NEVER) is SendEnd.CLEAN


# ---- the link ----


def test_a_flush_takes_as_long_as_the_link(make_guest, ends):
    guest = make_guest(256)
    random_pages(guest.sources[0], 0, 256)
    drain = Drain(ends[1])
    sender = PageSender(ends[0].fileno(), guest.sent, link_speed=10 << 20)
    begin = time.monotonic()
    sender.send(0, NEVER)
    sender.flush()
    assert time.monotonic() - begin >= sender.transferred / (10 << 20) - 0.002
    drain.all_of(ends[0])


@pytest.mark.parametrize("link_speed", [1, 0], ids=["waits for the link", "full socket"])
@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_a_shutdown_by_another_thread_ends_the_sending(make_guest, family, link_speed):
    first, second = socket.socketpair() if family == socket.AF_UNIX else tcp_pair()
    guest = make_guest(5000)
    random_pages(guest.sources[0], 0, 5000)
    sender = PageSender(first.fileno(), guest.sent, link_speed)
    timer = threading.Timer(0.2, first.shutdown, [socket.SHUT_RDWR])
    timer.start()
    with first, second, pytest.raises(BrokenPipeError):
        sender.send(0, NEVER)
        pytest.fail("5000 pages have gone into a socket that nobody reads")
    timer.join()


def tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        first = socket.create_connection(listener.getsockname())
        return first, listener.accept()[0]


def test_a_shutdown_by_another_thread_ends_the_receiving(make_guest, ends):
    destination = Destination(ends[1], make_guest(1).received)
    ends[0].sendall(BEGIN)
    time.sleep(0.05)
    ends[1].shutdown(socket.SHUT_RDWR)
    destination.join()
    assert destination.error is None
    assert len(destination.messages) == 1


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_a_peer_that_has_vanished_is_an_error(make_guest, family):
    first, second = socket.socketpair() if family == socket.AF_UNIX else tcp_pair()
    guest = make_guest(5000)
    random_pages(guest.sources[0], 0, 5000)
    second.close()
    with first, pytest.raises((BrokenPipeError, ConnectionResetError)):
        PageSender(first.fileno(), guest.sent).send(0, NEVER)


def test_a_closed_descriptor_is_an_error(make_guest, ends):
    guest = make_guest(100)
    random_pages(guest.sources[0], 0, 100)
    fd = ends[0].fileno()
    ends[0].close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        PageSender(fd, guest.sent).send(0, NEVER)
    with pytest.raises(OSError, match="Bad file descriptor"):
        PageReceiver(fd, guest.received, LIMITS).receive()


# ---- memory that is not there ----


def test_a_page_without_memory_at_the_destination_is_an_error(make_guest, ends):
    guest = make_guest(32)
    random_pages(guest.sources[0], 0, 32)
    os.ftruncate(guest.fds[0][1], 20 * PAGE)
    destination = Destination(ends[1], guest.received)
    sender = PageSender(ends[0].fileno(), guest.sent)
    sender.put(BEGIN)
    sender.send(0, NEVER)
    sender.flush()
    destination.join()
    assert isinstance(destination.error, OSError)
    assert "Bad address" in str(destination.error)
    os.ftruncate(guest.fds[0][1], 32 * PAGE)


def test_a_page_that_cannot_be_cleared_is_an_error(make_guest, ends):
    guest = make_guest(32)
    random_pages(guest.sources[0], 0, 32)
    receiver = PageReceiver(ends[1].fileno(), guest.received, LIMITS)
    sender = PageSender(ends[0].fileno(), guest.sent)
    receiving = threading.Thread(target=receiver.receive)
    sender.put(BEGIN)
    sender.flush()
    receiving.start()
    receiving.join()
    receiving = threading.Thread(target=receiver.receive)
    receiving.start()
    sender.send(0, NEVER)
    sender.put(BEGIN)
    sender.flush()
    receiving.join()
    os.ftruncate(guest.fds[0][1], 0)
    guest.sources[0][:] = bytes(32 * PAGE)
    core.mark_dirty(ones(32), guest.sent[0].dirty)
    sender.send(0, NEVER)
    sender.flush()
    with pytest.raises(OSError, match="Bad address"):
        receiver.receive()


@pytest.mark.parametrize("fd", [True, False])
def test_a_page_that_is_gone_at_the_source_is_an_error(make_guest, ends, fd):
    guest = make_guest(64)
    random_pages(guest.sources[0], 0, 64)
    os.ftruncate(guest.fds[0][0], 10 * PAGE)
    block = guest.sent[0] if fd else guest.sent[0]._replace(fd=-1)
    drain = Drain(ends[1])
    with pytest.raises(OSError, match="Bad address"):
        PageSender(ends[0].fileno(), [block]).send(0, NEVER)
    drain.all_of(ends[0])


def test_memory_without_a_file_is_sent(ends):
    with mmap.mmap(-1, 8 * PAGE) as memory:
        random_pages(memory, 2, 3)
        drain = Drain(ends[1])
        block = SentBlock("anon", core.address_of(memory), ones(8), 8)
        sender = PageSender(ends[0].fileno(), [block])
        assert sender.send(0, NEVER) is SendEnd.CLEAN
        sender.flush()
        assert len(pages_in_order(drain.all_of(ends[0]))) == 8
        assert sender.normal == 3


# ---- streams that are none ----


def record(page, *, name=b"", zero=False, n=0, flags=0):
    flags |= (1 if zero else 0) | (2 if name else 0)
    word = page << 24 | n << 8 | flags
    named = bytes([len(name)]) + name if name else b""
    return word.to_bytes(8, "little") + named + (b"\0" if zero else b"")


def batch(*records):
    """Put records together; the first one gets their length."""
    data = b"".join(records)
    return data[:1] + len(data).to_bytes(2, "little") + data[3:]


NAMED = {"name": b"block0"}
GARBAGE = {
    "page first": (batch(record(0, **NAMED)), "does not begin as one of pysampler's"),
    "text": (b"GET / HTTP/1.1\r\n\r\n", "does not begin as one of pysampler's"),
    "word": (BEGIN + bytes([0x40]) + bytes(7), "0x40 begins neither a message nor a page"),
    "unnamed": (BEGIN + batch(record(0)), "the first page names no block"),
    "name": (
        BEGIN + batch(record(0, name=b"no\x1b[1m\xff")),
        r"a page of block 'no\\\\x1b\[1m�', which is not here",
    ),
    "page": (BEGIN + batch(record(64, **NAMED)), "page 64 of block block0, which has 64"),
    "far page": (BEGIN + batch(record(2**40 - 1, **NAMED)), "page 1099511627775 of block"),
    "filler": (
        BEGIN + batch(record(1, **NAMED, zero=True)[:-1] + b"\7"),
        "a zero page with a byte 7",
    ),
    "many": (
        BEGIN + batch(record(0, **NAMED), *[record(i) for i in range(32)]),
        "a batch of more than 32 pages",
    ),
    "no length": (BEGIN + record(0, **NAMED), "do not fit into their 0 bytes"),
    "short length": (BEGIN + record(0, **NAMED, n=7), "do not fit into their 7 bytes"),
    "long length": (BEGIN + record(0, **NAMED, n=32769), "do not fit into their 32769 bytes"),
    "cut name": (BEGIN + record(0, **NAMED, n=12), "do not fit into their 12 bytes"),
    "cut word": (
        BEGIN + batch(record(0, **NAMED), bytes(3)),
        "do not fit into their 18 bytes",
    ),
    "no filler": (BEGIN + batch(record(0, **NAMED, zero=True)[:-1]), "do not fit"),
    "second length": (
        BEGIN + batch(record(0, **NAMED), record(1, n=8)),
        "0x1000800 begins neither",
    ),
    "message inside": (
        BEGIN + batch(record(0, **NAMED), core.message_bytes(2, b"")),
        "begins neither",
    ),
    "cut word of message": (BEGIN + BEGIN[:5], "ends in the middle of a page or a message"),
    "cut message": (BEGIN[:-1], "ends in the middle of a page or a message"),
    "cut records": (BEGIN + batch(record(0, **NAMED))[:-1], "ends in the middle"),
    "cut contents": (BEGIN + batch(record(0, **NAMED)) + bytes(4095), "ends in the middle"),
    "kind": (BEGIN + core.message_bytes(9, b""), "a message of unknown kind 9"),
    "long message": (
        BEGIN + core.message_bytes(2, bytes(11)),
        "a message of kind 2 and 11 bytes; 10 are the most that fit",
    ),
    "longest message": (
        (1 << 64) - 1 - 0xFFFFFF + 0x180,
        "a message of kind 1 and 1099511627775 bytes; 1048576 are the most that fit",
    ),
}


@pytest.mark.parametrize("case", GARBAGE)
def test_what_is_no_stream_is_refused_by_name(make_guest, ends, case):
    data, message = GARBAGE[case]
    if isinstance(data, int):
        data = data.to_bytes(8, "little")
    destination = Destination(ends[1], make_guest(64).received)
    ends[0].sendall(data)
    ends[0].shutdown(socket.SHUT_WR)
    destination.join()
    assert isinstance(destination.error, FormatError)
    with pytest.raises(FormatError, match=message):
        raise destination.error
    assert "\n" not in str(destination.error)


def test_a_stream_that_ends_between_its_parts_has_just_ended(make_guest, ends):
    guest = make_guest(64)
    destination = Destination(ends[1], guest.received)
    content = np.random.default_rng(1).bytes(PAGE)
    ends[0].sendall(BEGIN + batch(record(3, **NAMED)) + content)
    ends[0].shutdown(socket.SHUT_WR)
    destination.join()
    assert destination.error is None
    assert guest.targets[0][3 * PAGE : 4 * PAGE] == content


@pytest.mark.parametrize("step", [1, 7, 4093])
def test_a_stream_may_come_in_any_pieces(make_guest, ends, step):
    guest = make_guest(40)
    random_pages(guest.sources[0], 3, 35)
    drain = Drain(ends[1])
    sender = PageSender(ends[0].fileno(), guest.sent)
    sender.put(BEGIN)
    sender.send(0, NEVER)
    sender.put(ITERATION_END)
    sender.flush()
    data = drain.all_of(ends[0])
    first, second = socket.socketpair()
    with first, second:
        destination = Destination(second, guest.received)
        for at in range(0, len(data), step):
            first.sendall(data[at : at + step])
        first.shutdown(socket.SHUT_WR)
        destination.join()
    assert destination.error is None
    assert guest.targets[0][:] == guest.sources[0][:]


@pytest.mark.parametrize("name", ["", "x" * 256])
def test_a_name_that_no_record_can_hold_is_refused(name):
    with pytest.raises(ValueError, match="that no stream can hold"):
        PageSender(0, [SentBlock(name, 0, ones(1), 1)])
    with pytest.raises(ValueError, match="that no stream can hold"):
        PageReceiver(0, [ReceivedBlock(name, 0, 1)], {})


def test_bitmaps_must_be_long_enough():
    with pytest.raises(ValueError, match="fewer bits than pages"):
        PageSender(0, [SentBlock("a", 0, ones(64), 65)])
    with pytest.raises(ValueError, match="different lengths"):
        core.mark_dirty(ones(64), ones(65))
