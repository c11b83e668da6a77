"""Catalogues: thousands of songs in a bucket, separated by as many machines as Ray has."""
