# SPDX-License-Identifier: MIT
"""``pysampler doctor``: what works on this machine."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from pysampler.cli.streams import put
from pysampler.cli.tables import print_table
from pysampler.doctor import examine
from pysampler.printable import printable

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Print the findings."""
    findings = list(examine())
    if args.json:
        put(json.dumps({"findings": [dataclasses.asdict(f) for f in findings]}, indent=2))
        return 0
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        mark = Text("yes", "green") if finding.works else Text("no", "red")
        table.add_row(finding.name, mark, printable(finding.detail))
        if finding.cure:
            table.add_row("", "", f"-> {printable(finding.cure)}")
    print_table(table)
    return 0
