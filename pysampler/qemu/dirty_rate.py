# SPDX-License-Identifier: MIT
"""The limits of QEMU's calc-dirty-rate, as of QEMU 10.0.2, and the pages that it counts.

Sources: qapi/migration.json (calc-dirty-rate), migration/dirtyrate.h and
target/i386/cpu-param.h of QEMU.
"""

from __future__ import annotations

# Bytes of a page: TARGET_PAGE_SIZE of x86-64. QEMU and the vector count pages of this size.
PAGE_SIZE = 4096

# Samples per GiB: the argument sample-pages.
SAMPLE_PAGES_MIN = 128
SAMPLE_PAGES_MAX = 16384
SAMPLE_PAGES_DEFAULT = 512

# The argument calc-time. Below a second it needs the unit millisecond of QEMU 8.2 and newer.
CALC_TIME_MIN_MS = 50
CALC_TIME_MAX_MS = 60_000

# Bytes. QEMU skips a shorter RAMBlock (MIN_RAMBLOCK_SIZE; its comment says MB, its code KiB).
MIN_USED_LENGTH = 128 << 10
