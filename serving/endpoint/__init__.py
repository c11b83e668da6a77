"""TorchServe: its configuration, its handler, and the answers it gives."""
