"""How fast the package is, measured against the least that could do its work; see README.md beside this file."""
