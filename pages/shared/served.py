"""What ``make run`` serves: the app, and the HTTP answers beside it."""

from pathlib import Path

from streamlit import App

from pages.shared.api import ROUTES

app = App(Path(__file__).parents[2] / "streamlit_app.py", routes=ROUTES)
