"""The pure core and the performing layer, without any server."""
