"""Programs of others that show a run's metrics: each has a module here, and a key below `logging`."""
