# SPDX-License-Identifier: MIT
"""``python -m pysampler.demo``: a guest is sampled, its migration predicted, and then done.

This is what ``make demo`` runs.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

from pysampler.errors import SourceError
from pysampler.guest.process import GuestProcess
from pysampler.host.child import module_command

SHAPE = ("--memory", "512M", "--vcpus", "2")
GUEST = (
    *("--zero", "30%", "--seed", "7"),
    *("--workload", "hotcold:hot=10%,hits=90%,ws=358M,wps=10k", "--link-speed", "10Gbps"),
)
LINK = ("--bandwidth", "1Gbps", "--downtime", "300ms")


def main() -> int:
    """Start two guests, sample one, predict its migration, migrate it to the other.

    Returns:
        The exit code of the first command that failed, 0 when none did.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            return _show(folder)
        except SourceError as error:  # a guest's own words
            print(error, file=sys.stderr)
            return error.exit_code


def _show(folder: str) -> int:
    source = (*SHAPE, *GUEST, "--qmp", f"unix:{folder}/source.qmp")
    destination = (*SHAPE, "--incoming", f"unix:{folder}/incoming")
    vector = f"{folder}/vector.json"
    for words in (source, destination):
        print(f"$ pysampler guest {' '.join(words)} &", file=sys.stderr)
    with GuestProcess(*source) as guest, GuestProcess(*destination):
        steps = (
            ("sample", "--pid", str(guest.pid), "--calc-time", "10s", "-o", vector),
            ("predict", vector, *LINK, "--link", "10Gbps"),
            ("migrate", "--from", source[-1], "--to", destination[-1], *LINK),
        )
        for step in steps:
            print(f"$ pysampler {' '.join(step)}", file=sys.stderr, flush=True)
            code = subprocess.run(module_command("pysampler", *step), check=False).returncode
            if code:
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
