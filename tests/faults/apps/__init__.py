"""What the fault tests' servers serve."""
