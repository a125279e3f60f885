# SPDX-License-Identifier: MIT
"""Says whether the kernel notes writes in soft-dirty bits.

A process of its own, started by `pysampler.host.child`: trying it clears all bits of the process.
"""

from __future__ import annotations

import sys

from pysampler.tracking.soft_dirty import cycle_works

if __name__ == "__main__":
    sys.stdout.write(str(cycle_works()))
