# SPDX-License-Identifier: MIT
"""Tell cffi what the C core declares, and the compiler how to build it.

PYSAMPLER_SANITIZE, e.g. ``address,undefined``, builds with these sanitizers.
"""

from __future__ import annotations

import os

from cffi import FFI

HERE = os.path.dirname(os.path.abspath(__file__))
# Relative to the project's root: setuptools wants no absolute names.
SOURCES = sorted(f"csrc/{name}" for name in os.listdir(HERE) if name.endswith(".c"))
HEADERS = sorted(f"csrc/{name}" for name in os.listdir(HERE) if name.endswith(".h"))


def declarations() -> str:
    """Return the part of pysampler.h that cffi reads."""
    with open(os.path.join(HERE, "pysampler.h"), encoding="utf-8") as header:
        text = header.read()
    return text.partition("/* cdef: begin */")[2].partition("/* cdef: end */")[0]


# -O3 is not taste: XXH64 takes twice as long at -O2.
compile_args = ["-std=gnu11", "-O3", "-fvisibility=hidden", "-Wall", "-Wextra"]
link_args = []
sanitizers = os.environ.get("PYSAMPLER_SANITIZE")
if sanitizers:
    flags = [f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer", "-g", "-O1"]
    # Python's own flags define signed overflow, which would hide it.
    flags.append("-fno-wrapv")
    compile_args += flags
    link_args += flags

ffibuilder = FFI()
ffibuilder.cdef(declarations())
ffibuilder.set_source(
    "pysampler._native",
    '#include "pysampler.h"',
    sources=SOURCES,
    depends=HEADERS,
    include_dirs=["csrc"],
    libraries=["m"],
    extra_compile_args=compile_args,
    extra_link_args=link_args,
)
