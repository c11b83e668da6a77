"""Catalogues: thousands of songs in a bucket, separated by all machines of a Ray cluster."""
