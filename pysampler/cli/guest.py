# SPDX-License-Identifier: MIT
"""``pysampler guest``: a QEMU-shaped process without a VM."""

from __future__ import annotations

import json
import os
import re
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from pysampler.cli.arguments import checked, integer, size
from pysampler.cli.signals import EndingSignals
from pysampler.cli.streams import put, say
from pysampler.core import LOG_RING, LOG_RING_MAX, LOG_RING_MIN
from pysampler.errors import SourceError, UsageError
from pysampler.guest import BlockSpec, Content, Guest, Phases, allocate
from pysampler.guest.dirty_log import check_ring_size
from pysampler.guest.guest import MAX_VCPUS, SLOT_BYTES
from pysampler.guest.held import HeldVcpus
from pysampler.guest.measure import GuestMeasure
from pysampler.guest.phases import assign
from pysampler.guest.ram import MAIN_IDSTR, named
from pysampler.guest.vcpu import store_of, working_set
from pysampler.guest.workload import parse_fraction
from pysampler.migration.address import parse_uri
from pysampler.migration.migration import Migration
from pysampler.qmp.address import listen
from pysampler.qmp.server import QmpServer
from pysampler.tracking.userfaultfd import offer_userfaultfd
from pysampler.units import parse_rate, parse_size

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from pysampler.host.listener import Listener

DEFER = "defer"  # an incoming migration that QMP begins
MIN_LINK_SPEED = 1000  # bytes/s; 0 would mean no limit

_IDSTR = re.compile(r"[A-Za-z0-9._:/-]{1,200}", re.ASCII)
# So small a time is no duration of a measurement, which units.py reads.
_COST = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ns|us|ms)", re.ASCII)
_NS = {"ns": 1, "us": 1000, "ms": 1_000_000}
_MAX_BLOCKS = 64
_TICK_S = 0.25
_END_S = 4.0  # from a signal, or quit, to the end


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.description = (
        "A guest without a VM: RAM in memfds with QEMU's names, vCPU threads that write it in a "
        "known pattern at a known rate. When it is ready it prints one line of JSON; SIGTERM or "
        "QMP's quit ends it."
    )
    parser.add_argument(
        "--memory",
        type=size("--memory"),
        default="1G",
        metavar="SIZE",
        help="main block (default 1G)",
    )
    parser.add_argument(
        "--vcpus",
        type=integer("--vcpus", low=1, high=MAX_VCPUS, bounds=f"from 1 to {MAX_VCPUS}"),
        default=1,
        metavar="N",
        help="default 1",
    )
    parser.add_argument(
        "--workload",
        action="append",
        default=[],
        metavar="[VCPU=]WORKLOAD",
        help="e.g. uniform:wps=500k, hotcold:hot=10%%,hits=90%%, zipf:theta=0.99, sweep, kv:mix=A, "
        "idle (the default); burst:on=200ms,off=800ms,of=..., silent:of=..., free:of=..., "
        "read:of=...; all take wps=, ws=, block=, lag=. One for all vCPUs, or one for each",
    )
    parser.add_argument(
        "--workload-file", metavar="FILE", help="a schedule of phases, JSON or TOML"
    )
    parser.add_argument(
        "--zero",
        type=checked(lambda text: parse_fraction(text, "--zero")),
        default=0.0,
        metavar="FRACTION",
        help="left zero, at each block's end, e.g. 60%%",
    )
    parser.add_argument(
        "--content",
        choices=[content.value for content in Content],
        default=Content.RANDOM.value,
        help="of the rest: random does not compress, text to about 1/2, mixed is half and half",
    )
    parser.add_argument(
        "--block",
        type=checked(_block),
        action="append",
        default=[],
        metavar="NAME=SIZE",
        help="one more RAMBlock",
    )
    parser.add_argument("--huge", action="store_true", help="huge pages of 2 MiB")
    parser.add_argument(
        "--seed",
        type=integer("--seed", low=0, high=(1 << 64) - 1, bounds="from 0 to 2^64 - 1"),
        default=0,
        help="of content and workloads (default 0)",
    )
    parser.add_argument(
        "--truth", action="store_true", help="keep the time of each page's last write"
    )
    parser.add_argument(
        "--logging-cost",
        type=checked(_cost_ns),
        default=0,
        metavar="TIME",
        help="what a page's first write takes longer while dirty logging is on, as under KVM, "
        "e.g. 1.3us (default 0, at most 1ms)",
    )
    parser.add_argument(
        "--dirty-ring-size",
        type=checked(_ring_size),
        default=LOG_RING,
        metavar="N",
        help=f"entries of each vCPU's dirty ring, a power of two from {LOG_RING_MIN} to "
        f"{LOG_RING_MAX} (default {LOG_RING}); 0: the guest has none, so QMP has neither mode "
        "dirty-ring nor dirty-limit",
    )
    parser.add_argument(
        "--incoming",
        type=checked(_incoming),
        metavar="ADDRESS",
        help="wait for another guest that migrates to unix:PATH or tcp:127.0.0.1:PORT and go on in "
        "its place, with its content and workloads; defer: QMP's migrate-incoming says where",
    )
    parser.add_argument(
        "--link-speed",
        type=checked(_link_speed),
        default=0,
        metavar="RATE",
        help="what the link carries when this guest migrates, e.g. 10Gbps (default: as fast as the "
        "socket); max-bandwidth limits all but the last pass to less",
    )
    parser.add_argument(
        "--qmp", metavar="ADDRESS", help="serve QMP at unix:PATH or tcp:127.0.0.1:PORT"
    )


def run(args: argparse.Namespace) -> int:
    """Run the guest until a signal or QMP's quit ends it."""
    specs = (BlockSpec(MAIN_IDSTR, args.memory), *args.block)
    if len(specs) > _MAX_BLOCKS:
        raise UsageError(f"--block: {len(specs)} blocks; there can be {_MAX_BLOCKS}")
    if args.incoming == DEFER and args.qmp is None:
        raise UsageError(f"--incoming {DEFER}: add --qmp, over which migrate-incoming says where")
    phases = _phases(args)
    with EndingSignals() as signals, ExitStack() as stack:
        listener = None
        if args.qmp is not None:  # before the RAM, which takes long to fill
            listener = listen(args.qmp)
            stack.callback(listener.close)
        with signals.interrupting():
            for workload in phases.workloads():  # a store that does not fit, likewise
                store_of(workload, named(specs, workload.block), args.seed)
            incoming = args.incoming is not None
            ram = allocate(
                specs,
                zero=1.0 if incoming else args.zero,  # its content comes with the migration
                content=Content(args.content),
                seed=args.seed,
                huge=args.huge,
                truth=args.truth,
                reachable=None if incoming else _reachable(specs, phases, args.zero),
            )
        guest = Guest(
            ram,
            phases,
            args.seed,
            incoming=incoming,
            logging_cost_ns=args.logging_cost,
            dirty_ring_size=args.dirty_ring_size,
        )
        stack.callback(guest.close)
        failures: list[str] = []  # of an incoming migration

        def incoming_failed(reason: str) -> None:
            failures.append(reason)
            guest.request_shutdown()

        migration = Migration(guest, args.link_speed, incoming_failed)
        stack.callback(_close_migration, migration)
        offered = offer_userfaultfd()  # for exact tracking from outside
        for fd in offered:
            stack.callback(os.close, fd)
        held = HeldVcpus(guest, offered)
        server = None
        if listener is not None:
            server = QmpServer(
                guest,
                GuestMeasure(guest),
                migration,
                listener,
                lambda text: say(args.verb, text),
            )
            stack.callback(server.close)
            server.start()
        if incoming and args.incoming != DEFER:
            migration.incoming(args.incoming)
        guest.cont()
        put(json.dumps(_ready(guest, server, migration)))
        # Looked at and not waited for: a handler must not take the lock of what it interrupts.
        while not signals.received and not guest.shutdown_requested.wait(_TICK_S):
            guest.note_rates()
            guest.log.end_if_unread()
            held.look()
        ending = _end_anyway(listener, code=1 if failures else 0)
        if server is not None and not failures:
            server.shutdown("host-signal")  # unless it has told them of a quit already
    ending.cancel()
    guest.check()
    if failures:
        raise SourceError(failures[0])
    return 0


def _close_migration(migration: Migration) -> None:
    """End the migration; its threads use the guest's memory. `_end_anyway` limits the wait."""
    while not migration.close():
        pass


def _end_anyway(listener: Listener | None, code: int) -> threading.Timer:
    """Make the process end in time, even if a thread is held or a client does not read.

    Returns:
        The timer, to be cancelled when all has ended by itself.
    """

    def end() -> None:
        if listener is not None:
            listener.close()
        os._exit(code)

    timer = threading.Timer(_END_S, end)
    timer.daemon = True
    timer.start()
    return timer


def _block(text: str) -> BlockSpec:
    name, equals, length = text.partition("=")
    if not equals or _IDSTR.fullmatch(name) is None:
        raise UsageError(f"--block: {text[:40]!r} is not NAME=SIZE, as vga=16M is")
    return BlockSpec(name, parse_size(length, f"--block {name}"))


def _cost_ns(text: str) -> int:
    match = _COST.fullmatch(text)
    ns = round(float(match[1]) * _NS[match[2]]) if match else -1
    if not 0 <= ns <= _NS["ms"]:
        raise UsageError(
            f"--logging-cost: {text[:40]!r} is not a time from 0us to 1ms, as 1.3us and 900ns are"
        )
    return ns


def _ring_size(text: str) -> int:
    name = "--dirty-ring-size"
    if not (text.isascii() and text.isdecimal()) or len(text) > 20:
        raise UsageError(f"{name} must be a whole number (got {text[:40]!r})")
    return check_ring_size(int(text), name)


def _incoming(text: str) -> str:
    if text != DEFER:
        parse_uri(text)
    return text


def _link_speed(text: str) -> int:
    rate = round(parse_rate(text, "--link-speed"))
    if rate < MIN_LINK_SPEED:
        raise UsageError(f"--link-speed: {text!r} is less than {MIN_LINK_SPEED} bytes a second")
    return rate


def _phases(args: argparse.Namespace) -> Phases:
    if args.workload_file is None:
        return Phases.steady(assign(args.workload, args.vcpus))
    if args.workload:
        raise UsageError("--workload and --workload-file: give one of them")
    return Phases.from_file(args.workload_file, args.vcpus)


def _reachable(specs: Sequence[BlockSpec], phases: Phases, zero: float) -> int:
    """Return the bytes that content and workloads can bring into memory."""
    reach = {spec.idstr: round(spec.length * (1 - zero)) for spec in specs}
    for workload in phases.workloads():
        spec = named(specs, workload.block)
        reach[spec.idstr] = max(reach[spec.idstr], working_set(workload, spec))
    return sum(reach.values())


def _ready(guest: Guest, server: QmpServer | None, migration: Migration) -> dict[str, Any]:
    truth = guest.ram.truth
    return {
        "pid": os.getpid(),
        "blocks": [
            {
                "idstr": block.idstr,
                "address": block.address,
                "length": block.length,
                "page-size": block.page_size,
                "fd": block.fd,
            }
            for block in guest.blocks
        ],
        "vcpus": [{"index": vcpu.index, "thread-id": vcpu.thread_id} for vcpu in guest.vcpus()],
        "counters": {"fd": guest.counters.fd, "slot-bytes": SLOT_BYTES},
        "truth": None if truth is None else {"fd": truth.fd},
        "qmp": None if server is None else server.address,
        "incoming": migration.incoming_uri,
    }
