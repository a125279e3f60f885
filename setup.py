# SPDX-License-Identifier: MIT
"""The C core is an out-of-line cffi module; everything else is in pyproject.toml."""

from setuptools import setup

setup(cffi_modules=["csrc/ffi_build.py:ffibuilder"])
