# SPDX-License-Identifier: MIT
"""The entry point of ``python -m pysampler`` and of the script ``pysampler``.

It imports nothing at first, so that Ctrl-C is answered with a line from the start.
"""

from __future__ import annotations

import errno
import locale
import os
import sys


def main() -> int:
    """Repair the standard streams, then run one command; return its exit code."""
    _open_standard_descriptors()
    # Our matrices are so small that threads of a BLAS would only wait for each other, where others
    # use the CPUs for milliseconds each time. numpy's own wheels have OpenBLAS.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if sys.stderr is None:
        # print(file=None) would go to stdout, among the data.
        sys.stderr = open(2, "w", closefd=False, errors="backslashreplace")  # noqa: SIM115
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stdout is not None:
        # A name that the encoding lacks is shown escaped.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a TextIOWrapper
    if _is_ascii_asked_for():
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.reconfigure(encoding="ascii", errors="backslashreplace")
    try:
        from pysampler import cli  # noqa: PLC0415

        return cli.main()
    except KeyboardInterrupt:
        print("pysampler: interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # an installation that is broken, say
        if "--debug" in sys.argv:
            raise
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        cure = "raise `ulimit -n`" if _lacks_descriptors(error) else "--debug shows where"
        print(f"pysampler: {text}; {cure}", file=sys.stderr)
        return 1
    finally:
        _discard_what_stderr_refuses()


def _is_ascii_asked_for() -> bool:
    """Return whether the locale is C: Python writes UTF-8 even then (PEP 540)."""
    if os.environ.get("PYTHONIOENCODING") or os.environ.get("PYTHONUTF8") == "1":
        return False
    return locale.setlocale(locale.LC_CTYPE) in {"C", "POSIX"}


def _lacks_descriptors(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}


def _discard_what_stderr_refuses() -> None:
    """Drop output that stderr does not take, or the interpreter would exit with 120."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _open_standard_descriptors() -> None:
    """Open /dev/null for each of 0 to 2 that is closed: a guest's file must not become stdout."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:  # noqa: PERF203 - three times
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


if __name__ == "__main__":
    sys.exit(main())
