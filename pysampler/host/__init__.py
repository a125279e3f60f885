# SPDX-License-Identifier: MIT
"""This machine, and the other processes on it."""
