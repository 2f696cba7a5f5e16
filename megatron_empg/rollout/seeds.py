"""The seed of every request, from what the request is."""

from __future__ import annotations

import hashlib


def derive_seed(run_seed: int, step: int, question: str | int, sample: int, turn: int) -> int:
    """63 bits of SHA-256 over the five: the same request draws the same tokens, whatever ran before it."""
    key = f"{run_seed}/{step}/{question}/{sample}/{turn}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1
