"""History: measured runs."""

import streamlit as st

from pages.shared.chrome import open_page

open_page("History", "x")
