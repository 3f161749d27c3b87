"""Write a file for a user: a new regular file completely or not at all, and another one in its place only if asked."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from cache.refusals import why
from planner.errors import InvalidArgument

# Nobody keeps runs in these; a file there is read by the system or leads to a device.
SYSTEM_PLACES = ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/sbin", "/sys", "/usr")
_BUT_THESE = ("/dev/shm", "/usr/local", "/usr/src")
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def _is_within(path: Path, *folders: str) -> bool:
    return any(path == Path(folder) or Path(folder) in path.parents for folder in folders)


def checked_place(name: str, argument: str = "file", *, is_forced: bool = False) -> Path:
    """Give the path of a file that may be written: its folder with links followed, and its name.

    Raises:
        InvalidArgument: it is a link, no regular file, in a folder of the system or in none, or there is a file that
            `is_forced` does not give up.
    """
    unwritable = (
        "must be a file that can be written, or -" if argument == "file" else "must be a file in a folder that exists"
    )
    try:
        folder = Path(os.path.realpath(Path(name).parent, strict=True))
        path = folder / Path(name).name
        found = None
        with contextlib.suppress(FileNotFoundError):
            found = os.lstat(path)
    except (OSError, ValueError) as error:
        raise InvalidArgument(argument, unwritable, name, why(error)) from None
    if Path(name).name in ("", "..") or (found and stat.S_ISDIR(found.st_mode)):
        raise InvalidArgument(argument, unwritable, name, "it is a folder")
    if _is_within(path, *SYSTEM_PLACES) and not _is_within(path, *_BUT_THESE):
        if found and not stat.S_ISREG(found.st_mode) and not stat.S_ISLNK(found.st_mode):
            raise InvalidArgument(argument, unwritable, name, "it is no regular file")
        raise InvalidArgument(argument, unwritable, name, f"{folder} is a folder of the system")
    if found is None:
        return path
    if stat.S_ISLNK(found.st_mode):
        raise InvalidArgument(argument, "must not be a link", name, f"name the file: {os.path.realpath(path)}")
    if not stat.S_ISREG(found.st_mode):
        raise InvalidArgument(argument, unwritable, name, "it is no regular file")
    if not is_forced:
        raise InvalidArgument(argument, "must not be there yet", name, "name another file; --force replaces this one")
    return path


def write_file(
    path: Path, make: Callable[[Path], object], *, is_forced: bool = False, mode_of: Path | None = None
) -> None:
    """Let `make` write a file beside `path`, and then give it that name.

    `checked_place` has allowed the path. Without `is_forced` a file that came there meanwhile stays. A file that is
    replaced gives its mode to the new one,
    and `mode_of` to a file that replaces none.

    Raises:
        OSError: the file cannot be written or renamed; nothing is left of it.
    """
    part = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.part")
    mode = None
    try:
        if mode_of is not None:
            mode = stat.S_IMODE(mode_of.stat().st_mode)
        if is_forced:
            with contextlib.suppress(FileNotFoundError):
                old = os.lstat(path)
                if not stat.S_ISREG(old.st_mode):
                    raise OSError(errno.EEXIST, "it is no regular file")
                mode = stat.S_IMODE(old.st_mode)
        # A file whose mode comes from another one is closed to others until it has that mode.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(part, flags, 0o666 if mode is None else 0o600)
        os.close(descriptor)
        make(part)
        descriptor = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if mode is not None:
                os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if is_forced:
            os.replace(part, path)
        else:
            _name_new(part, path)
    finally:
        part.unlink(missing_ok=True)


def _name_new(part: Path, path: Path) -> None:
    """Give the part its name, unless a file of this name came meanwhile."""
    try:
        # Unlike a rename, a link never replaces a file.
        os.link(part, path, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # A file system without hard links leaves a moment between the look and the rename.
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, "a file came there meanwhile") from None
        os.rename(part, path)
