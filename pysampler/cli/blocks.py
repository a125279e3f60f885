# SPDX-License-Identifier: MIT
"""``pysampler blocks``: what would be sampled, and how it would be read."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

from rich.table import Table

from pysampler.cli.source_arguments import add_source_arguments, blocks_of
from pysampler.cli.streams import put
from pysampler.cli.tables import print_table
from pysampler.errors import SourceError
from pysampler.memory.ramblock import FileMemory, ProcessMemory, RAMBlock
from pysampler.memory.reader import open_reader
from pysampler.memory.reader.opened import Opened
from pysampler.printable import encodable, printable
from pysampler.qemu.dirty_rate import MIN_USED_LENGTH, PAGE_SIZE
from pysampler.units import format_size

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_source_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """List the RAMBlocks."""
    with closing(Opened()) as opened:
        rows = [_row(block, opened) for block in blocks_of(args)]
    if args.json:
        put(json.dumps({"blocks": rows}, indent=2))
        return 0
    table = Table(box=None, pad_edge=False)
    for heading in ("RAMBlock", "used length", "page size", "read by", "where"):
        table.add_column(
            heading, justify="right" if "size" in heading or "length" in heading else "left"
        )
    for row in rows:
        table.add_row(
            printable(row["idstr"]),
            format_size(row["used-length"]),
            format_size(row["page-size"]),
            row["access"] or f"not: {printable(row['why-not'])}",
            printable(row["where"]),
        )
    print_table(table)
    return 0


def _row(block: RAMBlock, opened: Opened) -> dict[str, Any]:
    access, why_not = None, None
    if block.used_length < MIN_USED_LENGTH:
        why_not = "skipped, shorter than 128 KiB"
    else:
        try:
            with closing(open_reader(block, PAGE_SIZE, opened)) as reader:
                access = reader.access
        except SourceError as error:
            why_not = str(error)
    return {
        "idstr": block.idstr,
        "used-length": block.used_length,
        "page-size": block.page_size,
        "access": access,
        "why-not": why_not and encodable(why_not),
        "where": encodable(_where(block)),
    }


def _where(block: RAMBlock) -> str:
    if isinstance(block.memory, FileMemory):
        return f"{block.memory.path} at {block.memory.offset}"
    if isinstance(block.memory, ProcessMemory):
        return f"address {block.memory.address:#x}"
    return "this process"
