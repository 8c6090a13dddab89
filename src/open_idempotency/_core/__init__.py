"""The pure core: what is decided and in which order. No I/O, clock, randomness, threads or event loop."""
