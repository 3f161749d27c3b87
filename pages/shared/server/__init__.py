"""The server: how it starts, the app it serves, and the HTTP answers beside the pages."""
