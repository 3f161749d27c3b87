"""The commands ``compile`` and ``doctor``: make memory programs, and check this machine."""

import sys
from dataclasses import asdict

import click

from cache.doctor import checks
from cache.machine.versions import check_installed
from cache.programs import compile_installed, find
from planner.answer import SCHEMA
from planner.cli.arguments import json_option
from planner.cli.output import print_json, say

# `doctor` exits with this if something is broken; 2 is a usage error, as everywhere.
BROKEN = 1


@click.command("compile")
@click.option("--force", is_flag=True, help="Compile again even if there are programs for these versions.")
def compile_command(force: bool) -> int:
    """Compile memory programs for the installed versions, unless there are some already."""
    check_installed()
    found = find()
    if found.library is not None and found.notice is None and not force:
        versions = ", ".join(f"{name} {version}" for name, version in found.library.versions.items())
        say(f"memory programs for {versions} are there ({found.library.source}); --force compiles them again")
        return 0
    live, last = sys.stderr.isatty(), -1

    def report(done: float, what: str) -> None:
        nonlocal last
        if live:
            sys.stderr.write(f"\r\033[K[{done:4.0%}] {what}")
            sys.stderr.flush()
        elif int(done * 10) > last:
            last = int(done * 10)
            say(f"[{done:4.0%}] {what}")

    try:
        said = compile_installed(report)
    finally:
        if live:
            sys.stderr.write("\r\033[K")
    say(said)
    return 0


@click.command("doctor")
@json_option
def doctor_command(as_json: bool) -> int:
    """Check GPU, driver, versions, history and model, and say what to do.

    The exit code is 1 where something is broken, marked by ✕. A missing GPU is not broken.
    """
    found = checks()
    code = BROKEN if any(check.state == "problem" for check in found) else 0
    if as_json:
        print_json({"schema": SCHEMA, "checks": [asdict(check) for check in found]})
        return code
    signs = {"ok": "✓", "note": "·", "problem": "✕"}
    for check in found:
        print(f"{signs[check.state]} {check.name}: {check.found}")
        if check.advice:
            print(f"    {check.advice}")
    return code
