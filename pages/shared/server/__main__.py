"""``make run``: start ``streamlit run`` after importing what every page needs.

Without this the first visitor waits for these imports; nothing else differs.
"""

import sys
from pathlib import Path

import altair  # noqa: F401
from streamlit.web import cli

# This imports the history, the jobs and the planner, which takes half a second.
import pages.shared.frame.session  # noqa: F401

ROOT = Path(__file__).parents[3]

if __name__ == "__main__":
    sys.argv = ["streamlit", "run", str(ROOT / "streamlit_app.py"), *sys.argv[1:]]
    cli.main()
