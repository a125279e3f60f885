# SPDX-License-Identifier: MIT
"""Pages of a migration: sent and received, through a socket; see struct ps_page_sender."""

from __future__ import annotations

import enum
import errno
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pysampler._native import ffi, lib
from pysampler.core.seam import check, u64
from pysampler.errors import FormatError
from pysampler.printable import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

STREAM_PAGE: int = lib.PS_STREAM_PAGE
MAX_MESSAGE = (1 << 40) - 1  # bytes
MAX_BLOCK_PAGES = 1 << 40
MAX_BLOCK_NAME: int = lib.PS_BLOCK_NAME

# What is wrong with a stream; the fault's number goes into the braces.
_FAULTS: dict[int, str] = {
    lib.PS_FAULT_START: "it does not begin as one of pysampler's does",
    lib.PS_FAULT_WORD: "{:#x} begins neither a message nor a page",
    lib.PS_FAULT_LENGTH: "a batch of pages whose records do not fit into their {} bytes",
    lib.PS_FAULT_UNNAMED: "the first page names no block",
    lib.PS_FAULT_FILLER: "a zero page with a byte {}",
    lib.PS_FAULT_MANY: "a batch of more than {} pages",
    lib.PS_FAULT_TRUNCATED: "it ends in the middle of a page or a message",
}


class SendEnd(enum.IntEnum):
    """What ended a slice of sending."""

    LIMIT = lib.PS_SEND_LIMIT
    CLEAN = lib.PS_SEND_CLEAN
    TIME = lib.PS_SEND_TIME


class SentBlock(NamedTuple):
    """A RAMBlock that is sent.

    Attributes:
        name: 1 to 255 bytes in UTF-8.
        address: where it is mapped in this process.
        dirty: the pages to be sent; page ``n`` is bit ``n % 64`` of word ``n // 64``.
        n_pages: pages of 4096 bytes.
        fd: the memfd that is mapped there from its first byte on: then holes stay holes. -1: each
            dirty page is read by its address.
    """

    name: str
    address: int
    dirty: NDArray[np.uint64]
    n_pages: int
    fd: int = -1


class ReceivedBlock(NamedTuple):
    """A RAMBlock that is received, all zero at first.

    Attributes:
        name: 1 to 255 bytes in UTF-8.
        address: where it is mapped in this process, writable.
        n_pages: pages of 4096 bytes.
    """

    name: str
    address: int
    n_pages: int


class TruncatedStreamError(FormatError):
    """A stream has ended in the middle of a page or a message."""


class Message(NamedTuple):
    """What is no page in a stream.

    Attributes:
        kind: its number.
        payload: its bytes.
    """

    kind: int
    payload: bytes


def message_bytes(kind: int, payload: bytes) -> bytes:
    """Return a message as it is in the stream, 8 bytes longer than what it says."""
    word: int = lib.ps_message_word(kind, len(payload))
    return word.to_bytes(8, "little") + payload


def mark_dirty(taken: NDArray[np.uint64], dirty: NDArray[np.uint64]) -> int:
    """Set the bits of ``taken`` in ``dirty``, of as many words; return how many were not set."""
    if len(taken) != len(dirty):
        raise ValueError("bitmaps of different lengths")
    return int(
        lib.ps_mark_dirty(u64(taken, "taken"), len(taken), u64(dirty, "dirty", writable=True))
    )


def _name_of(block: SentBlock | ReceivedBlock) -> Any:
    name = block.name.encode("utf-8")
    if not 1 <= len(name) <= MAX_BLOCK_NAME or not 0 <= block.n_pages <= MAX_BLOCK_PAGES:
        raise ValueError(
            f"{block.name[:40]!r}: a name or a number of pages that no stream can hold"
        )
    return ffi.new("char[]", name), len(name)


class PageSender:
    """Sends dirty pages and messages; all bytes of a stream go through it. One thread at a time.

    To end a call from another thread, shut the socket down.

    Args:
        fd: a blocking stream socket; it stays the caller's.
        blocks: in the order in which they are sent; their memory and bitmaps outlive the sender.
        link_speed: bytes/s that the link carries: after each flush the sender waits until it has
            carried what was sent. 0: whatever the socket takes.
    """

    def __init__(self, fd: int, blocks: Sequence[SentBlock], link_speed: int = 0) -> None:
        self._kept: list[Any] = []  # C points into it
        rows = ffi.new("struct ps_sent_block[]", len(blocks))
        for row, block in zip(rows, blocks, strict=True):
            name, row.name_bytes = _name_of(block)
            if len(block.dirty) * 64 < block.n_pages:
                raise ValueError(f"{block.name}: a bitmap of fewer bits than pages")
            row.name, row.n_pages, row.fd = name, block.n_pages, block.fd
            row.address = ffi.cast("void *", block.address)
            row.dirty = u64(block.dirty, "dirty", writable=True)
            self._kept += name, block.dirty
        self._kept.append(rows)
        self._struct = ffi.new("struct ps_page_sender *")
        self._struct.fd, self._struct.link_speed = fd, link_speed
        self._struct.blocks, self._struct.n_blocks = rows, len(blocks)

    def put(self, data: bytes) -> None:
        """Append messages, which may be flushed.

        Raises:
            OSError: the socket does not take it, as in `flush`.
        """
        check(lib.ps_sender_put(self._struct, data, len(data)), "migration stream")

    def send(self, limit: int, until_ns: int) -> SendEnd:
        """Send dirty pages on from where the last call stopped, over the blocks and round again.

        A page's bit is cleared, then the page is read, and it is found out whether it is zero. A
        page costs 4104 bytes, a zero page 9, the first page of another block than the last one's 1
        more and the block's name. Bytes are flushed after 32 whole pages, or 32768 bytes of other
        things.

        Args:
            limit: bytes; before each page it is seen whether `used` is more; 0 for no limit.
            until_ns: CLOCK_MONOTONIC in ns, which is looked at after each 64 pages.

        Raises:
            OSError: as in `flush`; EFAULT: a page cannot be read.
        """
        end = lib.ps_sender_send(self._struct, limit, until_ns)
        return SendEnd(check(end, "migration stream"))

    def flush(self) -> None:
        """Give all that was put to the socket, and wait until the link has carried it.

        Raises:
            OSError: EPIPE or ECONNRESET: the other side has gone, or the socket was shut down.
        """
        check(lib.ps_sender_flush(self._struct), "migration stream")

    @property
    def used(self) -> int:
        """Bytes flushed since it was set to 0."""
        return int(self._struct.used)

    @used.setter
    def used(self, value: int) -> None:
        self._struct.used = value

    @property
    def pending(self) -> int:
        """Dirty pages: what it was set to, less one for each page sent since."""
        return int(self._struct.pending)

    @pending.setter
    def pending(self, value: int) -> None:
        self._struct.pending = value

    @property
    def transferred(self) -> int:
        """Bytes flushed in all."""
        return int(self._struct.transferred)

    @property
    def ram_bytes(self) -> int:
        """Bytes of pages put so far with their records, flushed or not."""
        return int(self._struct.ram_bytes)

    @property
    def normal(self) -> int:
        """Pages sent whole."""
        return int(self._struct.normal)

    @property
    def duplicate(self) -> int:
        """Zero pages sent."""
        return int(self._struct.duplicate)


class PageReceiver:
    """Receives a stream: places pages, hands messages on. One thread at a time.

    The stream may come from anyone. A page goes into no block but those given, and a message is
    read only when its length is allowed. To end a call from another thread, shut the socket down.

    Args:
        fd: a blocking stream socket; it stays the caller's.
        blocks: where pages go; their memory outlives the receiver, and is all zero at first.
        limits: for each kind of message that may come, the most bytes that it may have.
    """

    def __init__(self, fd: int, blocks: Sequence[ReceivedBlock], limits: Mapping[int, int]) -> None:
        self._limits = dict(limits)
        self._blocks = tuple(blocks)
        self._kept: list[Any] = []  # C points into it
        rows = ffi.new("struct ps_received_block[]", len(blocks))
        for row, block in zip(rows, blocks, strict=True):
            name, row.name_bytes = _name_of(block)
            received = np.zeros(-(-block.n_pages // 64), dtype=np.uint64)
            row.name, row.n_pages = name, block.n_pages
            row.address = ffi.cast("void *", block.address)
            row.received = u64(received, "received", writable=True)
            self._kept += name, received
        self._kept.append(rows)
        self._struct = ffi.new("struct ps_page_receiver *")
        self._struct.fd = fd
        self._struct.blocks, self._struct.n_blocks = rows, len(blocks)
        self._kind, self._n_bytes = ffi.new("uint16_t *"), ffi.new("uint64_t *")

    def receive(self) -> Message | None:
        """Place pages until a message comes.

        A zero page is cleared where one with content was received; elsewhere nothing is written,
        and a hole stays one.

        Returns:
            The message; None when the stream has ended between two of its parts.

        Raises:
            FormatError: the stream is none of pysampler's, or ends where it must not.
            OSError: EFAULT: a page cannot be written, as there is no memory for it, for example;
                ECONNRESET: the other side has gone.
        """
        if not self._check(lib.ps_receiver_receive(self._struct, self._kind, self._n_bytes)):
            return None
        kind, n_bytes = int(self._kind[0]), int(self._n_bytes[0])
        if kind not in self._limits:
            raise FormatError(f"migration stream: a message of unknown kind {kind}")
        if n_bytes > self._limits[kind]:
            raise FormatError(
                f"migration stream: a message of kind {kind} and {n_bytes} bytes;"
                f" {self._limits[kind]} are the most that fit"
            )
        payload = bytearray(n_bytes)
        self._check(lib.ps_receiver_read(self._struct, ffi.from_buffer(payload), n_bytes))
        return Message(kind, bytes(payload))

    @property
    def normal(self) -> int:
        """Pages received whole."""
        return int(self._struct.normal)

    @property
    def duplicate(self) -> int:
        """Zero pages received."""
        return int(self._struct.duplicate)

    def _check(self, result: int) -> int:
        if result == -errno.EBADMSG:
            truncated = self._struct.fault == lib.PS_FAULT_TRUNCATED
            error = TruncatedStreamError if truncated else FormatError
            raise error(f"migration stream: {self._fault()}")
        return check(result, "migration stream")

    def _fault(self) -> str:
        struct = self._struct
        value = int(struct.fault_value)
        if struct.fault == lib.PS_FAULT_NAME:
            at, n = struct.fault_name_at, struct.fault_name_bytes
            name = bytes(ffi.buffer(struct.records)[at : at + n]).decode("utf-8", "replace")
            return f"a page of block {printable(name)!r}, which is not here"
        if struct.fault == lib.PS_FAULT_PAGE:
            block = self._blocks[struct.block - 1]
            return f"page {value} of block {block.name}, which has {block.n_pages}"
        return _FAULTS[struct.fault].format(value)
