# SPDX-License-Identifier: MIT
"""Exact tracking, from outside: every written page is counted, with no sample."""
