"""Names inside a checkpoint's folder that its writer, its readers and the run folder share."""

MANIFEST = "manifest.json"
"""The last file of a checkpoint, without which it is not whole."""
