# SPDX-License-Identifier: MIT
"""Live migration between emulated guests, as QEMU 10 does it."""
