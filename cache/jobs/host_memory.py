"""Find out whether the system's out-of-memory killer ended a process, where that can be known."""

from pathlib import Path

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def killed_for_memory(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int | None:
    """Count the processes of this control group that were killed for memory.

    The count is None if it is unknown. A worker is in the group of its parent. The count covers the group's own limit
    and the whole machine's memory.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst, oom_kill of memory.events; cgroup-v1/memory.rst,
    oom_kill of memory.oom_control.
    """
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return None
    groups = {controllers: path.lstrip("/") for _, controllers, path in (line.split(":", 2) for line in lines)}
    tried = []
    if "" in groups:
        tried.append(cgroups / groups[""] / "memory.events")
    for controllers, path in groups.items():
        if "memory" in controllers.split(","):
            tried += [cgroups / "memory" / path / "memory.oom_control", cgroups / "memory" / "memory.oom_control"]
    for file in tried:
        try:
            rows = dict(line.split(None, 1) for line in file.read_text().splitlines())
            return int(rows["oom_kill"])
        except (OSError, ValueError, KeyError):
            continue
    return None
