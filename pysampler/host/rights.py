# SPDX-License-Identifier: MIT
"""Explain why a process may not be read, with the cure; docs/attaching.md has the rules."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass

from pysampler.errors import AccessError, SourceError

# A plain `sudo pysampler` does not find what is installed in a virtual environment.
SUDO = '`sudo env "PATH=$PATH" pysampler ...`'

_CAPABILITIES = {"CAP_DAC_OVERRIDE": 1, "CAP_DAC_READ_SEARCH": 2, "CAP_SYS_PTRACE": 19}
_FILES = ("maps", "pagemap")  # what every way of reading a process opens
_YAMA = "/proc/sys/kernel/yama/ptrace_scope"
_MOUNTS = "/proc/self/mounts"
_INITIAL_USER_NAMESPACE = 0xEFFFFFFD  # the kernel's fixed inode of /proc/self/ns/user
_HIDEPID_NAMES = {"0": "off", "1": "noaccess", "2": "invisible", "4": "ptraceable"}


def ptrace_scope() -> int:
    """Return Yama's kernel.yama.ptrace_scope; 0 where the kernel has no Yama."""
    try:
        with open(_YAMA, encoding="utf-8") as scope:
            return int(scope.read())
    except (OSError, ValueError):
        return 0


def hidepid() -> str:
    """Return the name of what /proc hides, as in hidepid=invisible; "off" when it hides nothing."""
    found = "off"
    try:
        with open(_MOUNTS, encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                words = line.split(" ")
                if len(words) > 3 and words[1:3] == ["/proc", "proc"]:
                    options = dict(option.partition("=")[::2] for option in words[3].split(","))
                    value = options.get("hidepid", "off").strip()
                    found = _HIDEPID_NAMES.get(value, value)  # the last mount covers the others
    except OSError:
        pass
    return found


def check_access(pid: int) -> None:
    """Try to open the files of /proc/PID that each way of reading a process needs.

    Raises:
        SourceError: it may not be read, or has ended; the message names the cure.
    """
    try:
        for name in _FILES:
            _open(pid, name)
    except OSError as error:
        raise process_error(error, pid) from error


def check_proc() -> None:
    """Check that a pid means the same process in /proc and in system calls.

    Raises:
        SourceError: /proc is that of another pid namespace, or not mounted.
    """
    try:
        shown = os.readlink("/proc/self")
    except OSError as error:
        raise SourceError("/proc is not mounted here: mount -t proc proc /proc") from error
    if shown != str(os.getpid()):
        raise SourceError(
            "/proc shows the process ids of another pid namespace than this process is in; mount"
            " it anew, as unshare --mount-proc does"
        )


def process_error(error: OSError, pid: int) -> SourceError:
    """Return the error that an OSError about a process stands for."""
    if isinstance(error, PermissionError):
        return access_error(pid, os.path.basename(str(error.filename or "")))
    if isinstance(error, (ProcessLookupError, FileNotFoundError)):
        try:
            check_proc()
        except SourceError as of_proc:
            return of_proc
        hidden = _hidden(pid)
        return hidden or SourceError(f"no process has the pid {pid}")
    return SourceError(f"process {pid}: {error.strerror}")


def access_error(pid: int, refused: str = "") -> AccessError:
    """Return the error for a process that exists but may not be read, with its cure.

    Args:
        pid: the process.
        refused: the file of /proc/PID that could not be opened; if empty, it is found by trying.
    """
    refused = refused if refused in {"pagemap", "clear_refs"} else _refused(pid)
    process, reader = _Credentials.of(pid), _Credentials.of("self")
    why = _why(pid, refused, process, reader)
    if refused == "maps" and hidepid() != "off":
        why = f"/proc is mounted with hidepid={hidepid()}, and {why}"
    return AccessError(f"process {pid} may not be read: {why}")


def file_cure(capability: str = "CAP_DAC_READ_SEARCH") -> str:
    """Return the cure for a file whose mode forbids the access."""
    if os.geteuid() == 0:
        return f"this root lacks {capability} (in a container?); run as the file's owner, or add it"
    inside = not _in_initial_user_namespace()
    return f"run as its owner, or {_as_root(inside=inside)}, or with {capability}"


@dataclass(frozen=True)
class _Credentials:
    """Effective user, owner of the files in /proc, and capabilities of a process."""

    uid: int
    files_uid: int
    permitted: int
    effective: int

    @classmethod
    def of(cls, pid: int | str) -> _Credentials | None:
        """Return the credentials from /proc; None when they cannot be read."""
        try:
            with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as status:
                lines = dict(line.partition(":")[::2] for line in status)
            return cls(
                uid=int(lines["Uid"].split()[1]),
                # Not the user's own when the process is not dumpable.
                files_uid=os.stat(f"/proc/{pid}/maps").st_uid,
                permitted=int(lines["CapPrm"], 16),
                effective=int(lines["CapEff"], 16),
            )
        except (OSError, KeyError, IndexError, ValueError):
            return None

    def has(self, capability: str) -> bool:
        """Return whether a capability is in effect."""
        return bool(self.effective >> _CAPABILITIES[capability] & 1)


def _why(pid: int, refused: str, process: _Credentials | None, reader: _Credentials | None) -> str:
    if reader is None:
        return "/proc is not mounted here, or is that of another pid namespace; mount it"
    inside = not _in_initial_user_namespace()
    if refused == "memory" and ptrace_scope() == 3:
        return (
            "kernel.yama.ptrace_scope is 3, which forbids it to everybody until the next boot;"
            " memory in a file may still be read with --file"
        )
    missing = _missing(refused, process, reader)
    if reader.has("CAP_SYS_PTRACE"):
        if refused == "maps" and inside:
            return (
                "it is outside of this user namespace, where no capability of this one counts;"
                f" run pysampler {_as_root(inside=True)}"
            )
        if missing:
            return (
                f"CAP_SYS_PTRACE is there, but /proc/{pid}/{refused} {_owned(process)} and"
                f" {missing} is missing; add it, or run {_as_root(inside=inside)}"
            )
        return (
            "a security module (SELinux, AppArmor) or a seccomp filter forbids it, which no"
            " capability cures; run pysampler outside of the container, or change that policy"
        )
    if inside and (process is None or process.uid in {reader.uid, _overflow_uid()}):
        return (
            "it is outside of this user namespace, or not dumpable;"
            f" run pysampler {_as_root(inside=True)}"
        )
    if reader.uid == 0:
        options = " ".join(f"--cap-add={name[4:]}" for name in missing.split(" and "))
        return (
            f"this root lacks {missing} (in a container?); add what is missing, e.g."
            f" docker run {options}"
        )
    return f"{_reason(refused, process, reader)}; {_cures(refused, process, reader, missing)}"


def _reason(refused: str, process: _Credentials | None, reader: _Credentials) -> str:
    if process is None:
        return "its owner cannot be seen"
    if process.uid != reader.uid:
        return f"it belongs to {_user(process.uid)}"
    if refused == "memory" and ptrace_scope():
        return f"kernel.yama.ptrace_scope is {ptrace_scope()}"
    if process.permitted & ~reader.permitted:
        return "it has capabilities that pysampler has not"
    if process.files_uid != process.uid:
        return "the process is not dumpable (it changed its user, or asked for it)"
    return "a security module or a seccomp filter forbids it"


def _cures(refused: str, process: _Credentials | None, reader: _Credentials, missing: str) -> str:
    cures = [f"run {_as_root(inside=not _in_initial_user_namespace())}"]
    # Its user may read it when it is dumpable, has no capabilities, and Yama forbids nothing.
    if (
        process
        and process.uid not in {0, reader.uid}
        and process.uid == process.files_uid
        and not process.permitted | ptrace_scope()
    ):
        cures.append("as that user")
    if missing:
        cures.append(f"with {missing}")
    if refused == "memory" and ptrace_scope() and process and process.uid == reader.uid:
        cures.append("after `sysctl kernel.yama.ptrace_scope=0`")
    return ", or ".join(cures)


def _missing(refused: str, process: _Credentials | None, reader: _Credentials) -> str:
    """Return the capabilities that reading needs and this process lacks."""
    missing = [] if reader.has("CAP_SYS_PTRACE") else ["CAP_SYS_PTRACE"]
    if process is None or process.files_uid != reader.uid:
        override = reader.has("CAP_DAC_OVERRIDE")
        if refused == "clear_refs" and not override:
            missing.append("CAP_DAC_OVERRIDE")
        elif not override and not reader.has("CAP_DAC_READ_SEARCH"):
            missing.append("CAP_DAC_READ_SEARCH")
    return " and ".join(missing)


def _refused(pid: int) -> str:
    """Return the first file of a process that may not be opened; "memory" when all may."""
    name = ""
    try:
        for name in _FILES:
            _open(pid, name)
    except OSError:
        return name
    return "memory"


def _open(pid: int, name: str) -> None:
    os.close(os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC))


def _hidden(pid: int) -> AccessError | None:
    """Return the error for a process that exists though /proc does not show it; else None."""
    if pid <= 0 or os.path.exists(f"/proc/{pid}") or hidepid() in {"off", "noaccess"}:
        return None
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass  # it exists
    except (OSError, OverflowError):
        return None
    return access_error(pid)


def _as_root(*, inside: bool) -> str:
    return "as root outside of this user namespace" if inside else SUDO


def _owned(process: _Credentials | None) -> str:
    return f"belongs to {_user(process.files_uid)}" if process else "cannot be seen"


def _in_initial_user_namespace() -> bool:
    try:
        return os.stat("/proc/self/ns/user").st_ino == _INITIAL_USER_NAMESPACE
    except OSError:  # a kernel without them
        return True


def _overflow_uid() -> int:
    try:
        with open("/proc/sys/kernel/overflowuid", encoding="utf-8") as uid:
            return int(uid.read())
    except (OSError, ValueError):
        return 65534


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"uid {uid}"
