"""Bytes between buckets and folders: objects, members of zips, and a journal of complete files."""
