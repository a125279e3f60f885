# SPDX-License-Identifier: MIT
"""Tables on stdout."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console

from pysampler.cli.streams import STDOUT
from pysampler.host.writer import writing

if TYPE_CHECKING:
    from rich.table import Table

# Where no terminal says how wide it is, a row is better long than broken.
_WIDTH_OF_A_PIPE = 240


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal, or unbroken into a pipe or file."""
    width = None if sys.stdout.isatty() else _WIDTH_OF_A_PIPE
    # A name of a RAMBlock may look like markup or an emoji of rich's; what has a style is a Text.
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    if not console.encoding.startswith("utf"):  # where rich's mark of a cut word cannot be shown
        for column in table.columns:
            column.overflow = "fold"
    with writing(STDOUT):
        console.print(table)
