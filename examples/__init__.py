"""A small payments API for each framework, and a demo of what it survives. Start with README.md."""
