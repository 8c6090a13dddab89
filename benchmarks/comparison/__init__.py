"""What this package and its peers do, seen by a client: the same scenarios, over HTTP, against each of them."""
