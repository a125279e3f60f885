# SPDX-License-Identifier: MIT
"""The bytes on the socket: JSON as QEMU reads it, and messages as QEMU writes them."""
