"""Real faults against real processes. `make test` runs a fast selection, `make chaos` all of it."""
