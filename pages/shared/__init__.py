"""What the pages share. Streamlit takes no file in here for a page."""
