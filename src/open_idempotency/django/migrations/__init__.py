"""The migrations of the application's tables."""
