"""`stemwright doctor`: what this machine and its services can do for a run or a server."""
