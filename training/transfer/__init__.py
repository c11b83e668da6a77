"""Bytes between buckets and folders: objects, members of zips, and a record of those that have arrived."""
