"""Requests for the stems of songs, one by one or by the folder."""
