"""Disks that are full and files that may not be written, in child processes: nothing outside of them sees either."""

import ctypes
import functools
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import ROOT

PLANNER = (sys.executable, "-m", "planner")
_UNSHARE = ("unshare", "--map-root-user", "--mount")
# Makes a disk over a folder, with what is in another folder on it, and fills it but for so many KiB. The disk ends with
# the child, so what the command leaves on it goes into a third folder.
_ON_DISK = """
set -e
size=$1 room=$2 disk=$3 before=$4 after=$5
shift 5
mount -t tmpfs -o size=${size}k none "$disk"
cp -a "$before/." "$disk/"
dd if=/dev/zero of="$disk/filler" bs=4096 2>/dev/null || true
left=$(stat -c %s "$disk/filler")
truncate -s $((left - room * 1024)) "$disk/filler"
code=0
"$@" || code=$?
rm "$disk/filler"
cp -a "$disk/." "$after/"
exit $code
"""
# From linux/prctl.h and linux/capability.h.
_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 24, 1, 2


@functools.cache
def can_mount() -> bool:
    """Whether this machine lets a process have a file system of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*_UNSHARE, "mount", "-t", "tmpfs", "none", folder]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            return False


def _run(command: Sequence[str], **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **options)


def on_full_disk(folder: Path, command: Sequence[str], *, room_kib: int) -> subprocess.CompletedProcess[str]:
    """Run a command where `folder` is a full disk with its files; what it leaves there is there afterwards."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        before, after = Path(beside) / "before", Path(beside) / "after"
        shutil.copytree(folder, before)
        after.mkdir()
        size_kib = sum(-(-path.stat().st_size // 4096) * 4 for path in folder.iterdir()) + room_kib + 64
        places = map(str, (size_kib, room_kib, folder, before, after))
        done = _run([*_UNSHARE, "sh", "-c", _ON_DISK, "sh", *places, *command])
        for path in folder.iterdir():
            path.unlink()
        shutil.copytree(after, folder, dirs_exist_ok=True)
        return done


def with_file_limit(command: Sequence[str], limit_bytes: int, **options) -> subprocess.CompletedProcess[str]:
    """Run a command that may make no file longer than this, as on a disk with a quota. Python ignores the signal."""
    limits = (limit_bytes, limit_bytes)
    return _run(command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits), **options)


def as_anybody(command: Sequence[str], **options) -> subprocess.CompletedProcess[str]:
    """Run a command that keeps to the permissions of files, whoever runs the tests."""

    def drop() -> None:
        # Refused to whoever is not root, and not needed then.
        for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
            ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)

    return _run(command, preexec_fn=drop, **options)
