# SPDX-License-Identifier: MIT
"""What hashing a page costs: cases, a harness that runs them fairly, and what follows from them."""
