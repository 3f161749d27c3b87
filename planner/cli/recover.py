"""The command ``history recover``: save the runs of a damaged history into the one in use."""

from pathlib import Path

import click

from cache.history.file import DISCARDED
from cache.history.recovery import put_away, recover, salvage
from planner.answer import SCHEMA
from planner.cli.arguments import json_option
from planner.cli.history import count_text, open_store
from planner.cli.output import print_json, say
from planner.errors import CannotWrite, InvalidArgument


@click.command("recover")
@click.argument("file")
@click.option("--discard", is_flag=True, help="Save nothing, and no longer mention the file.")
@json_option
def recover_command(file: str, discard: bool, as_json: bool) -> int:
    """Save the runs of a damaged history that are certainly unchanged.

    FILE is one that 'history list' and 'doctor' name, or another history.
    """
    path = Path(file)
    if discard:
        return _discard(path, file, as_json)
    # The file is read before the history is opened, so that a wrong file does not create one.
    salvaged = salvage(path, file)
    done = recover(open_store(), path, salvaged)
    were = "was" if done.known == 1 else "were"
    say(f"saved {count_text(done.saved)}, {done.known} {were} known, {done.lost} could not be read completely")
    if done.stays:
        say(f"{path} is still mentioned, since it cannot be renamed ({done.stays})")
    elif done.path != path:
        say(f"the file is kept as {done.path}")
    if as_json:
        values = {"saved": done.saved, "known": done.known, "lost": done.lost, "file": str(done.path)}
        print_json({"schema": SCHEMA, **values})
    return 0


def _discard(path: Path, file: str, as_json: bool) -> int:
    store = open_store()
    if not store.is_set_aside(path):
        rule = "must be a damaged history that was set aside"
        named = ", ".join(map(str, store.damaged_files())) or "there is none"
        raise InvalidArgument("file", rule, file, named)
    name, stays = put_away(store, path, DISCARDED)
    if stays:
        raise CannotWrite(path, stays, "make its folder writable, or move the file away")
    say(f"nothing was saved; the file is kept as {name}")
    if as_json:
        print_json({"schema": SCHEMA, "saved": 0, "file": str(name)})
    return 0
