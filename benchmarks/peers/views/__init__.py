"""The views of peers that mark or wrap them; each module is imported by Django, and where its peer is installed."""
