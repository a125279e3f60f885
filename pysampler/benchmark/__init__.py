# SPDX-License-Identifier: MIT
"""The cost of hashing a page: cases, a harness that runs them fairly, and the cost of a pass."""
