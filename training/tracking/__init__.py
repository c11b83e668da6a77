"""MLflow: the tracker, the spool before it, and the registry."""
