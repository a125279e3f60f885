# SPDX-License-Identifier: MIT
"""The commands, in files by subject, each with its lines of the human monitor."""
