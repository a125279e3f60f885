# SPDX-License-Identifier: MIT
"""Why a process may not be read, and what cures it."""

from __future__ import annotations

import os
import pwd

from pysampler.errors import AccessError, SourceError

_CAP_SYS_PTRACE = 19
_YAMA = "/proc/sys/kernel/yama/ptrace_scope"


def has_cap_sys_ptrace() -> bool:
    """Return whether this process has CAP_SYS_PTRACE."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> _CAP_SYS_PTRACE & 1)
    return False


def ptrace_scope() -> int:
    """Return Yama's kernel.yama.ptrace_scope; 0 where the kernel has no Yama."""
    try:
        with open(_YAMA, encoding="ascii") as scope:
            return int(scope.read())
    except (OSError, ValueError):
        return 0


def access_error(pid: int) -> AccessError:
    """Return the error for a process that exists but may not be read, with its cure."""
    scope = ptrace_scope()
    try:
        owner = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        owner = -1
    if scope == 3:
        cure = "kernel.yama.ptrace_scope is 3, which forbids it to everybody until the next boot"
    elif has_cap_sys_ptrace():
        cure = "the process is in another user namespace or protected by a security module"
    elif os.geteuid() == 0:
        cure = (
            "this root lacks CAP_SYS_PTRACE (in a container?);"
            " add it, e.g. docker run --cap-add=SYS_PTRACE"
        )
    elif owner != os.geteuid():
        cure = (
            f"it belongs to {_user(owner)}; run pysampler with sudo, or as that user,"
            " or give it CAP_SYS_PTRACE"
        )
    elif scope:
        cure = (
            f"kernel.yama.ptrace_scope is {scope}; run pysampler with sudo, give it"
            " CAP_SYS_PTRACE, or `sysctl kernel.yama.ptrace_scope=0`"
        )
    else:
        cure = (
            "the process is not dumpable (it changed its user or has capabilities);"
            " run pysampler with sudo or give it CAP_SYS_PTRACE"
        )
    return AccessError(f"process {pid} may not be read: {cure}")


def process_error(error: OSError, pid: int) -> SourceError:
    """Return the error that an OSError about a process stands for."""
    if isinstance(error, PermissionError):
        return access_error(pid)
    if isinstance(error, (ProcessLookupError, FileNotFoundError)):
        return SourceError(f"no process has the pid {pid}")
    return SourceError(f"process {pid}: {error.strerror}")


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"uid {uid}"
