# SPDX-License-Identifier: MIT
"""``python -m pysampler``."""

import sys

from pysampler.cli import main

sys.exit(main())
