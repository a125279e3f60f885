# SPDX-License-Identifier: MIT
"""Exact tracking, from outside: every written page is counted, with no sample."""

from pysampler.tracking.userfaultfd import offer_userfaultfd

__all__ = ["offer_userfaultfd"]
