# SPDX-License-Identifier: MIT
"""The arguments that name what is sampled, common to several verbs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pysampler.cli.arguments import whole_number
from pysampler.cli.streams import say
from pysampler.errors import UsageError
from pysampler.memory.source import file_block, find_ram, named_block, process_fd_block
from pysampler.printable import encodable

if TYPE_CHECKING:
    import argparse

    from pysampler.memory.ramblock import RAMBlock

PID_MAX = 1 << 22  # the kernel's own limit


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --pid, --fd, --block and --file."""
    group = parser.add_argument_group("what to sample")
    group.add_argument(
        "--pid",
        type=whole_number("pid", low=1, high=PID_MAX),
        metavar="PID",
        help="a running QEMU, or any process",
    )
    group.add_argument(
        "--fd",
        type=whole_number("fd", low=0, high=1 << 30),
        metavar="N",
        help="with --pid: only the memfd or file it holds open as descriptor N",
    )
    group.add_argument(
        "--block",
        metavar="NAME=ADDR:LENGTH",
        action="append",
        default=[],
        help="with --pid: only this range of its memory; may be repeated",
    )
    group.add_argument(
        "--qmp",
        metavar="SOCKET",
        help="with --pid of a QEMU: its QMP socket, to be asked which RAMBlocks it has",
    )
    group.add_argument(
        "--file",
        metavar="PATH",
        action="append",
        default=[],
        help="a file, also on tmpfs or hugetlbfs; may be repeated",
    )


def blocks_of(args: argparse.Namespace) -> list[RAMBlock]:
    """Return the RAMBlocks that the arguments name; warnings go to stderr.

    Raises:
        UsageError: they contradict each other, or name nothing.
        SourceError: what they name cannot be sampled.
    """
    if args.pid is None:
        if args.fd is not None or args.block:
            raise UsageError("--fd and --block need --pid")
        if args.qmp is not None:
            raise UsageError("--qmp needs --pid")
        if not args.file:
            raise UsageError("name what to sample: --pid PID or --file PATH")
        return [file_block(path, encodable(os.path.basename(path))) for path in args.file]
    if args.file:
        raise UsageError("give either --pid or --file")
    if args.fd is not None and args.block:
        raise UsageError("give either --fd or --block")
    if args.qmp is not None and (args.fd is not None or args.block):
        raise UsageError(
            "give --qmp without --fd and --block, which name what to sample themselves"
        )
    if args.fd is not None:
        return [process_fd_block(args.pid, args.fd)]
    if args.block:
        return [named_block(args.pid, text) for text in args.block]
    found = find_ram(args.pid, args.qmp)
    if not getattr(args, "quiet", False):
        for remark in found.remarks:
            say(args.verb, f"warning: {remark}")
    return found.blocks
