"""``make run``: Streamlit's server, with what every page needs imported before it says that it is healthy.

``streamlit run streamlit_app.py`` shows the same app without the HTTP answers; its first visitor waits for the imports.
"""

import sys
from pathlib import Path

import altair  # noqa: F401
import sqlite_utils  # noqa: F401
from streamlit.web import cli

ROOT = Path(__file__).parents[2]

if __name__ == "__main__":
    sys.argv = ["streamlit", "run", str(ROOT / "pages" / "shared" / "served.py"), *sys.argv[1:]]
    cli.main()
