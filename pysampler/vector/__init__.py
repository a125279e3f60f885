# SPDX-License-Identifier: MIT
"""The vector: Measurement, its schedule of periods, intervals and remarks."""
