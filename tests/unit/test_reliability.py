"""Every promise of docs/reliability.md names tests that exist."""

import re

from tests.conftest import ROOT

DOCUMENT = (ROOT / "docs/reliability.md").read_text()
DEFINED = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
}


def test_every_promise_names_tests_that_exist():
    rows = [line for line in DOCUMENT.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    named = [re.findall(r"`(test_\w+)`", row.split(" | ")[1]) for row in rows]
    assert len(rows) > 15 and all(named)
    assert [name for names in named for name in names if name not in DEFINED] == []
