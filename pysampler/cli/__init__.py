# SPDX-License-Identifier: MIT
"""The command line: one module per verb, each with ``add_arguments`` and ``run``.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 an interrupted measurement,
130 interrupted before there was anything to keep.
Data goes to stdout; everything for people goes to stderr.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback

import pysampler
from pysampler.cli.streams import discard_stdout, one_line, say
from pysampler.errors import PysamplerError

# verb -> one line for --help; the verb's module is pysampler.cli.<verb>.
VERBS: dict[str, str] = {
    "sample": "sample memory and print its dirty-page vector as JSON",
    "predict": "predict migrations of a measured guest: time, downtime, and whether it converges",
    "advise": "say what would make a migration of a measured guest converge",
    "migrate": "migrate a guest through its QMP socket, show how it goes, and record it",
    "blocks": "list the RAMBlocks that would be sampled, and how each would be read",
    "completion": "print completions for a shell",
    "bench": "measure what hashing a page costs on this machine",
    "validate": "compare sampling with theory, exact tracking and the truth, on this machine",
    "doctor": "say what works on this machine, and for what does not, why and the cure",
    "guest": "run an emulated guest whose writes are known",
}


def build_parser(verbs: tuple[str, ...] = tuple(VERBS)) -> argparse.ArgumentParser:
    """Return the parser with the arguments of the given verbs."""
    parser = argparse.ArgumentParser(prog="pysampler", description=pysampler.__doc__)
    parser.add_argument("--version", action="version", version=f"pysampler {pysampler.__version__}")
    commands = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    for verb, summary in VERBS.items():
        command = commands.add_parser(verb, help=summary, description=summary)
        command.add_argument(
            "--debug", action="store_true", help="show a traceback when something fails"
        )
        if verb in verbs:
            importlib.import_module(f"pysampler.cli.{verb}").add_arguments(command)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    # Only the verb's own module is imported: `pysampler blocks` must not wait for scipy.
    verb = tuple(word for word in words[:1] if word in VERBS)
    parser = build_parser(verb)
    # Until they are parsed: a refused value is told as any other error.
    args = argparse.Namespace(verb="".join(verb), debug="--debug" in words)
    try:
        args = parser.parse_args(words)
        if sys.stdout is None:
            # Told before a minute of measuring and not after it.
            if getattr(args, "output", None) in (None, "/dev/stdout"):
                say(args.verb, "standard output is closed")
                return 1
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - till the end
        code: int = importlib.import_module(f"pysampler.cli.{args.verb}").run(args)
    except BrokenPipeError:
        # The reader of our stdout went away; do not let the interpreter's exit complain again.
        discard_stdout()
        return 1
    except Exception as error:  # noqa: BLE001 - the last net: whatever it is, it is one line
        if args.debug:
            traceback.print_exc()
        say(args.verb, one_line(error))
        try:
            sys.stdout.flush()
        except OSError:
            discard_stdout()
        return error.exit_code if isinstance(error, PysamplerError) else 1
    except KeyboardInterrupt:
        say(args.verb, "interrupted")
        return 130
    return code
