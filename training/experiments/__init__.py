"""Runs and archives side by side: the report, promotion to what is served, and sweeps."""
