"""One run, from a data set to an archive: excerpts, loop, validation, export; and a profile of its step."""
