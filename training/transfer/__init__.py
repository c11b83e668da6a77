"""Bytes out of buckets: objects, parts of zips, and which of them have arrived."""
