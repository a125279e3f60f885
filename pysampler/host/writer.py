# SPDX-License-Identifier: MIT
"""Write files: whole or not at all, and never where another user's link leads.

We may be root and write into a folder that others can write, such as /tmp. So a path is walked by
folder descriptors, and the folder that was checked is the folder that is written into, even when
somebody renames it meanwhile. A link is followed only when it belongs to us or to root. The new
content is written under a name of its own, which then replaces the old file. A file of another user
is never opened, and nothing of it is kept.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pysampler.errors import PysamplerError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

_MOST_LINKS = 40  # as the kernel follows


@contextmanager
def writing(name: str) -> Iterator[None]:
    """Turn an OSError within the block into one that names the file.

    Raises:
        BrokenPipeError: nobody reads it any more.
        PysamplerError: it could not be written.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise PysamplerError(f"cannot write {name}: {error.strerror or error}") from error


def is_trusted(uid: int) -> bool:
    """Return whether a user is this process's own, or root."""
    return uid in {os.geteuid(), 0}


def place_of(path: str, *, make_folders: int | None = None) -> tuple[int, str]:
    """Walk a path; return a descriptor of the folder that it leads to, and a name in it.

    The name is no link, or one of /proc to something open that has no name; it need not exist.

    Args:
        path: of a file or folder.
        make_folders: mode of those that are missing; None to miss them.

    Raises:
        OSError: it cannot be walked.
        PysamplerError: a link on the way belongs to another user.
    """
    words = _words(path)
    folder = os.open("/" if path.startswith("/") else ".", os.O_PATH | os.O_CLOEXEC)
    links = 0
    try:
        while words:
            word = words.pop()
            if make_folders is not None and words:
                with suppress(FileExistsError):
                    os.mkdir(word, make_folders, dir_fd=folder)
            try:
                entry = os.open(word, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            except FileNotFoundError:
                if words:
                    raise
                return folder, word
            try:
                status = os.fstat(entry)
                if stat.S_ISLNK(status.st_mode):
                    links += 1
                    if not words and _leads_to_something_nameless(folder, word, status):
                        return folder, word
                    target = _target(entry, status, path, links)
                    words += _words(target)
                    if target.startswith("/"):
                        os.close(folder)
                        folder = os.open("/", os.O_PATH | os.O_CLOEXEC)
                elif not words:
                    return folder, word
                elif not stat.S_ISDIR(status.st_mode):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
                else:
                    folder, entry = entry, folder
            finally:
                os.close(entry)
    except BaseException:
        os.close(folder)
        raise
    return folder, "."


def _words(path: str) -> list[str]:
    """Return the components of a path, the last first."""
    return [word for word in path.split("/") if word not in {"", "."}][::-1]


def _target(link: int, status: os.stat_result, path: str, links: int) -> str:
    if links > _MOST_LINKS:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    target = os.readlink("", dir_fd=link)
    if not is_trusted(status.st_uid):
        raise PysamplerError(
            f"cannot write {path}: a link on the way to it, to {target}, belongs to another user"
            f" (uid {status.st_uid}); name a file that no such link leads to"
        )
    return target


def _leads_to_something_nameless(folder: int, name: str, status: os.stat_result) -> bool:
    """Return whether a link of /proc stands for an open pipe, a device or the like."""
    if status.st_dev != os.stat("/proc/self").st_dev:
        return False
    mode = os.stat(name, dir_fd=folder).st_mode
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


class Draft:
    """A file that is being written: it takes its name whole, or leaves nothing.

    Args:
        folder: descriptor of its folder; the caller closes it after the draft.
        name: of the file.

    Raises:
        OSError: no file can be made there, or the name is a folder's.
    """

    def __init__(self, folder: int, name: str) -> None:
        mode = _mode(folder, name)
        self._folder, self._name = folder, name
        # Not by the file's own name, which may be as long as a name can be.
        self._fd, draft = tempfile.mkstemp(prefix=".pysampler-", dir=f"/proc/self/fd/{folder}")
        self._draft: str | None = os.path.basename(draft)
        os.fchmod(self._fd, mode)

    def commit(self, data: bytes) -> None:
        """Write all of it and give it its name.

        Raises:
            OSError: it could not be written; an old file is as it was.
        """
        fd, self._fd = self._fd, -1
        with open(fd, "wb") as file:
            file.write(data)
        here = f"/proc/self/fd/{self._folder}"
        os.replace(f"{here}/{self._draft}", f"{here}/{self._name}")
        self._draft = None

    def close(self) -> None:
        """Remove it unless it has its name; a second call does nothing."""
        with suppress(OSError):
            if self._fd >= 0:
                os.close(self._fd)
        self._fd = -1
        if self._draft is not None:
            with suppress(OSError):
                os.unlink(self._draft, dir_fd=self._folder)
            self._draft = None


def _mode(folder: int, name: str) -> int:
    """Return the new file's mode: an old one's if that is ours, and never more than rwx."""
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        pass
    else:
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "is a directory")
        is_ours = status.st_uid == os.geteuid() and status.st_nlink == 1
        if stat.S_ISREG(status.st_mode) and is_ours:
            return status.st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


class Folder:
    """A folder to write files into; a file or link that has the same name is replaced.

    Args:
        path: the folder; it and missing folders above it are made.

    Raises:
        OSError: it cannot be written into.
        PysamplerError: a link on the way belongs to another user.
    """

    def __init__(self, path: str) -> None:
        parent, name = place_of(path, make_folders=0o777)
        try:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=parent)
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(name, flags, dir_fd=parent)
        finally:
            os.close(parent)
        try:
            Draft(self._fd, "probe").close()
        except BaseException:
            self.close()
            raise

    def write(self, name: str, data: bytes) -> None:
        """Write a file.

        Raises:
            OSError: it could not be written.
        """
        draft = Draft(self._fd, name)
        try:
            draft.commit(data)
        finally:
            draft.close()

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_appendable(path: str) -> None:
    """Make sure that a line can be appended to a file, which need not be there yet.

    Raises:
        OSError: it could not be written.
        PysamplerError: the file, or a link on the way to it, is not ours.
    """
    folder, name = place_of(path)
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        Draft(folder, name).close()
    else:
        with open(fd, "ab"):
            refuse_others(os.fstat(fd), path)
    finally:
        os.close(folder)


def append_line(path: str, text: str) -> None:
    """Append a line to a file of ours; make the file if it is missing.

    Raises:
        OSError: it could not be written.
        PysamplerError: the file, or a link on the way to it, is not ours.
    """
    folder, name = place_of(path)
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(name, flags | os.O_CLOEXEC, 0o666, dir_fd=folder)
    finally:
        os.close(folder)
    with open(fd, "ab") as file:
        refuse_others(os.fstat(fd), path)
        file.write(f"{text}\n".encode())


def refuse_others(status: os.stat_result, path: str) -> None:
    """Refuse to write into a file in place unless it is a regular one, ours, of one name.

    Raises:
        PysamplerError: it is not.
    """
    why = ""
    if not stat.S_ISREG(status.st_mode):
        why = "it is no regular file"
    elif status.st_uid != os.geteuid():
        why = f"it belongs to another user (uid {status.st_uid})"
    elif status.st_nlink > 1:
        why = "it has a second name, a hard link"
    if why:
        raise PysamplerError(f"cannot write {path}: {why}; name another file")
