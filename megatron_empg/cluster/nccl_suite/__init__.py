"""Collectives over all ranks: right to the byte, as fast as they should be, and the culprit's name if not."""
