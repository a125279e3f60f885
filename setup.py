# SPDX-License-Identifier: MIT
"""The C core is an out-of-line cffi module; everything else is in pyproject.toml."""

import sysconfig

from setuptools import setup

# cffi keeps to the stable ABI, so one wheel fits each CPython from 3.10 on. A free-threaded build
# has none.
STABLE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    cffi_modules=["csrc/ffi_build.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if STABLE_ABI else {},
)
