# SPDX-License-Identifier: MIT
"""A plan draws pages, passes hash them, a Sampler freezes the counts into a Measurement."""
