"""Files in object storage, and the reasons that it gives for refusing them."""
