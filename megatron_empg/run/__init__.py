"""A run on disk: its folder, metrics, episode records, progress and heartbeats."""
