# SPDX-License-Identifier: MIT
"""``python -m pysampler.demo``: an emulated guest, sampled from outside for 10 s.

This is what ``make demo`` runs.
"""

from __future__ import annotations

import subprocess
import sys

from pysampler.errors import SourceError
from pysampler.guest.process import GuestProcess
from pysampler.host.child import module_command

GUEST = (
    *("--memory", "512M", "--vcpus", "2", "--zero", "30%", "--seed", "7"),
    *("--workload", "hotcold:hot=10%,hits=90%,ws=358M,wps=10k"),
)


def main() -> int:
    """Start the guest, sample it by pid, end it; return the sampler's exit code."""
    print(f"$ pysampler guest {' '.join(GUEST)} &", file=sys.stderr)
    try:
        with GuestProcess(*GUEST) as guest:
            words = ["sample", "--pid", str(guest.pid), "--calc-time", "10s"]
            print(f"$ pysampler {' '.join(words)}", file=sys.stderr)
            return subprocess.run(module_command("pysampler", *words), check=False).returncode
    except SourceError as error:  # the guest's own words
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
