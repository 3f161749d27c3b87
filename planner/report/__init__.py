"""Answers as rows, text, Markdown, commands and scripts. Nothing here prints."""
