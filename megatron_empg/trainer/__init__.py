"""The training loop, its batches, metrics, run folder and report: the room that knows all others."""
