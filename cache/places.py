"""Name the folder for what this user's planners share besides the history: locks of devices, and the log."""

import contextlib
import os
import stat
import tempfile
from pathlib import Path

import platformdirs

from cache.refusals import why
from planner.errors import CannotWrite

STATE = "PLANNER_STATE"


def _made(folder: Path) -> Path:
    """Make the folder if it is not there, and give it back if it is this user's alone.

    Raises:
        OSError: it cannot be made, or it is a link.
        PermissionError: it belongs to another user, or others may write into it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    # Whoever may write beside it could put a link to a folder of this user in its place.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            raise PermissionError(f"{folder} belongs to another user")
        if stat.S_IMODE(found.st_mode) & 0o077:
            os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} is not writable")
    return folder


def state_folder() -> Path:
    """Make the state folder of this user, which nobody else can read or write, and give it back.

    It is the folder in ``PLANNER_STATE``, else ``will-it-fit`` in the user's state directory. Where that cannot be
    written, it is one in the shared temporary directory whose name has the user's number.

    Raises:
        CannotWrite: none of them can be used.
    """
    named = os.environ.get(STATE)
    if named:
        folders = [Path(named).expanduser()]
    else:
        # TMPDIR would not do: it differs between batch jobs of one user that share a GPU.
        shared = Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())
        folders = [Path(platformdirs.user_state_dir("will-it-fit")), shared / f"will-it-fit-{os.geteuid()}"]
    reasons = []
    for folder in folders:
        try:
            return _made(folder)
        except OSError as error:
            reasons.append(f"{folder}: {why(error)}")
    raise CannotWrite(folders[0], "; ".join(reasons), f"set {STATE} to a folder of your own")
