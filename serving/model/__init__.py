"""The separator: its specification, its network, its archive, and the way from mixture to stems."""
