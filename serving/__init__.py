"""The inference layer of Stemwright: everything that happens to one song."""
