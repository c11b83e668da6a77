"""Files in object storage, and the errors that it answers with."""
