"""Verify: run the planned request on the attached card, watch it, and compare."""

import streamlit as st

from pages.shared.chrome import open_page

open_page("Verify", "x")
