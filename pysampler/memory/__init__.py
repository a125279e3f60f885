# SPDX-License-Identifier: MIT
"""RAMBlocks: found by source/, read by reader/."""
