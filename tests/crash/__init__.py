"""Real server processes, killed at chosen moments; what must hold afterwards is read from the shop's own books."""
