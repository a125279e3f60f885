# SPDX-License-Identifier: MIT
"""``pysampler completion``: print completions for a shell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pysampler import cli
from pysampler.cli.streams import put
from pysampler.errors import MissingFeatureError

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish", "tcsh"))


def run(args: argparse.Namespace) -> int:
    """Print the completions."""
    try:
        import shtab  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise MissingFeatureError(
            "completion needs shtab: pip install 'pysampler[completion]'"
        ) from error
    put(shtab.complete(cli.build_parser(), shell=args.shell))
    return 0
