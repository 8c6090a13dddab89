"""Real server processes are killed at chosen moments; the shop's own books show what happened."""
