# SPDX-License-Identifier: MIT
"""What goes over the socket: JSON as QEMU reads it, and messages as QEMU writes them."""
