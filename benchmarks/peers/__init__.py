"""Other packages for the same purpose, each set up as its own documentation says."""
