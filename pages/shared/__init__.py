"""Parts that the pages share; Streamlit takes no file in this folder for a page."""
