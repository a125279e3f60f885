# SPDX-License-Identifier: MIT
"""Facts about QEMU as data, each with its source."""
