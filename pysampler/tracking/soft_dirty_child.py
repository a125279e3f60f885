# SPDX-License-Identifier: MIT
"""Find out whether the kernel notes writes in soft-dirty bits.

This runs in a child that `pysampler.host.child` starts, because it clears all bits of its process.
"""

from __future__ import annotations

import sys

from pysampler.tracking.soft_dirty import cycle_works

if __name__ == "__main__":
    sys.stdout.write(str(cycle_works()))
