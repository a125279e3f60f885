# SPDX-License-Identifier: MIT
"""See that the Markdown files named are wrapped at 100 columns.

Tables, headings and code blocks may be longer, and so may a line of one word without spaces or one
that only a link makes too long.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

COLUMNS = 100
_LINK = re.compile(r"\]\([^)]*\)|<https?:[^>]*>|https?:\S+")


def too_long(text: str) -> list[int]:
    """Return the numbers of the lines that should be wrapped."""
    found = []
    fence = ""
    for number, line in enumerate(text.splitlines(), 1):
        words = line.strip()
        if fence:
            if words.startswith(fence) and not words.strip(fence[0]):
                fence = ""
        elif words.startswith(("```", "~~~")):
            fence = words[:3]
        elif not (
            len(line) <= COLUMNS
            or words.startswith(("|", "#"))
            or line.startswith(("    ", "\t"))
            or " " not in words
            or len(_LINK.sub("]", line)) <= COLUMNS
        ):
            found.append(number)
    return found


def main(names: list[str]) -> int:
    """Print what is too long; return how many files have some."""
    n_files = 0
    for name in names:
        numbers = too_long(Path(name).read_text(encoding="utf-8"))
        n_files += bool(numbers)
        for number in numbers:
            print(f"{name}:{number}: longer than {COLUMNS} columns")  # noqa: T201 - its output
    return n_files


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
