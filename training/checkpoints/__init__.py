"""The files that a run goes on from, and their copies in object storage."""
