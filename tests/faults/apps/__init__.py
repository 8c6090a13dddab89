"""The applications that the servers of the fault tests serve."""
