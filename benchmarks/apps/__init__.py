"""The same endpoint in each framework: bare, behind a middleware that does nothing, and protected by this package."""
