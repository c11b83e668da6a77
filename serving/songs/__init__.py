"""Requests for the stems of songs: one song, or folders of them."""
