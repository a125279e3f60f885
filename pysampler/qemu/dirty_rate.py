# SPDX-License-Identifier: MIT
"""The limits of QEMU's calc-dirty-rate, as of QEMU 10.0.2.

Sources: qapi/migration.json (calc-dirty-rate) and migration/dirtyrate.h of QEMU.
"""

from __future__ import annotations

# Samples per GiB: the argument sample-pages.
SAMPLE_PAGES_MIN = 128
SAMPLE_PAGES_MAX = 16384
SAMPLE_PAGES_DEFAULT = 512

# The argument calc-time. Below a second it needs the unit millisecond of QEMU 8.2 and newer.
CALC_TIME_MIN_MS = 50
CALC_TIME_MAX_MS = 60_000

# Bytes. QEMU skips a shorter RAMBlock (MIN_RAMBLOCK_SIZE; its comment says MB, its code KiB).
MIN_USED_LENGTH = 128 << 10
