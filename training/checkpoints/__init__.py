"""The files that a run resumes from, and their copies in object storage."""
