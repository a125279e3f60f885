# SPDX-License-Identifier: MIT
"""The published accuracy experiment, on this machine: theory, sampling, tracking and the truth."""
