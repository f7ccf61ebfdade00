"""A run from start to end, without a terminal: job, order, store, output files, manifest, and runs on Ray."""
