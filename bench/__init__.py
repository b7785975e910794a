"""Measurements against other software: `python -m bench`."""
