# SPDX-License-Identifier: MIT
"""QMP as QEMU 10.0.2 speaks it: messages, schema, commands, server."""
