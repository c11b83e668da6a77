"""One run: the loop, its step and state, validation, export, and several ranks at it."""
