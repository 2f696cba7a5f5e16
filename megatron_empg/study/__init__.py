"""A study: methods compared over tasks and seeds, each run by `empg train`, at equal episodes and updates."""
