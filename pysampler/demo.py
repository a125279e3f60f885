# SPDX-License-Identifier: MIT
"""``python -m pysampler.demo``: an emulated guest, sampled from outside for 10 s.

This is what ``make demo`` runs.
"""

from __future__ import annotations

import json
import subprocess
import sys

from pysampler.host.child import module_command

GUEST = (
    *("guest", "--memory", "512M", "--vcpus", "2", "--zero", "30%", "--seed", "7"),
    *("--workload", "hotcold:hot=10%,hits=90%,ws=358M,wps=10k"),
)


def main() -> int:
    """Start the guest, sample it by pid, end it; return the sampler's exit code."""
    print(f"$ pysampler {' '.join(GUEST)} &", file=sys.stderr)
    with subprocess.Popen(
        module_command("pysampler", *GUEST), stdout=subprocess.PIPE, text=True
    ) as guest:
        try:
            line = guest.stdout.readline() if guest.stdout else ""
            if not line:
                return 1  # it has said why
            words = ["sample", "--pid", str(json.loads(line)["pid"]), "--calc-time", "10s"]
            print(f"$ pysampler {' '.join(words)}", file=sys.stderr)
            return subprocess.run(module_command("pysampler", *words), check=False).returncode
        finally:
            guest.terminate()


if __name__ == "__main__":
    sys.exit(main())
