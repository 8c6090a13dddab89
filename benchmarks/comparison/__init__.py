"""This package and its peers as a client sees them: the same scenarios, over HTTP, on each of them."""
