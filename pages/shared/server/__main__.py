"""``make run``: ``streamlit run`` with what every page needs imported before the server says that it is healthy.

Started without this, the first visitor waits for these imports; all else is the same.
"""

import sys
from pathlib import Path

import altair  # noqa: F401
from streamlit.web import cli

# With the history, the jobs and all that plans: half a second of imports.
import pages.shared.frame.session  # noqa: F401

ROOT = Path(__file__).parents[3]

if __name__ == "__main__":
    sys.argv = ["streamlit", "run", str(ROOT / "streamlit_app.py"), *sys.argv[1:]]
    cli.main()
