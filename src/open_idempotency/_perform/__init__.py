"""How the core's commands are carried out: blocking or awaited, with clocks, threads and temporary files."""
