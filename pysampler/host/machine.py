# SPDX-License-Identifier: MIT
"""Facts about this machine, to be kept with each figure that was measured on it."""

from __future__ import annotations

import errno
import os
import platform
import re
from typing import TYPE_CHECKING, Any

from pysampler import core
from pysampler.errors import MissingFeatureError
from pysampler.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

_CGROUPS = "/sys/fs/cgroup"


def text_of(path: str) -> str:
    """Return the text of a file of /proc or /sys; empty where it cannot be read.

    Raises:
        OSError: this process has no descriptor left (EMFILE).
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError as error:
        if error.errno == errno.EMFILE:  # nothing is known then, which is not that nothing is there
            raise
        return ""


def cpu_model() -> str:
    """Return the CPU's name."""
    match = re.search(
        r"^(?:model name|Processor|CPU part)\s*:\s*(.+)$", text_of("/proc/cpuinfo"), re.MULTILINE
    )
    return match.group(1).strip() if match else platform.machine()


def last_level_cache_bytes() -> int:
    """Return the size of the largest cache of CPU 0; 0 when the kernel does not say."""
    sizes = [0]
    for index in range(8):
        text = text_of(f"/sys/devices/system/cpu/cpu0/cache/index{index}/size").strip()
        if text.endswith("K"):
            sizes.append(int(text[:-1]) << 10)
        elif text.endswith("M"):
            sizes.append(int(text[:-1]) << 20)
    return max(sizes)


def available_bytes() -> int:
    """Return the bytes of memory available without swapping, within the limits of our cgroups."""
    match = re.search(r"^MemAvailable:\s*(\d+) kB$", text_of("/proc/meminfo"), re.MULTILINE)
    available = int(match.group(1)) << 10 if match else 0
    return max(0, min([available, *_left_in_cgroups()]))


def _left_in_cgroups() -> Iterator[int]:
    """Yield the bytes left in each cgroup that limits this process, of version 1 or 2."""
    for line in text_of("/proc/self/cgroup").splitlines():
        _, controllers, folder = line.split(":", 2)
        if not controllers:
            root, most, now, idle = _CGROUPS, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root = f"{_CGROUPS}/memory"
            most, now = "memory.limit_in_bytes", "memory.usage_in_bytes"
            idle = "total_inactive_file"
        else:
            continue
        while True:  # each group is limited by those above it; a container may see but the top
            limit, used = text_of(f"{root}{folder}/{most}"), text_of(f"{root}{folder}/{now}")
            if limit.strip().isdigit() and used.strip().isdigit():
                stat = text_of(f"{root}{folder}/memory.stat")
                cached = re.search(rf"^{idle} (\d+)$", stat, re.MULTILINE)
                yield int(limit) - int(used) + (int(cached[1]) if cached else 0)
            if not folder.strip("/"):
                break
            folder = folder.rpartition("/")[0]


def facts() -> dict[str, Any]:
    """Return the facts about the machine that belong to a figure, as JSON values only."""
    governor = text_of("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip()
    try:
        zlib = core.zlib_version()
    except MissingFeatureError:
        zlib = None
    return {
        "cpu": cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "virtual": "hypervisor" in text_of("/proc/cpuinfo"),
        "governor": governor or None,
        "last-level-cache": last_level_cache_bytes(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "simd": core.simd_best().name.lower(),
        "zlib": zlib,
        "pysampler": __version__,
    }
