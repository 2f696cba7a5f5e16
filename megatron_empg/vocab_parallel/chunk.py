"""How many tokens' logits exist at a time; without torch, since a plan asks too."""

# A chunk's logits in elements, and the fewest tokens of a chunk: smaller products are slower, and each chunk
# reads and writes the weight's gradient once more.
CHUNK_LOGITS = {"cpu": 1 << 25, "cuda": 1 << 27}
LEAST_CHUNK = {"cpu": 128, "cuda": 2048}


def default_chunk(tokens: int, columns: int, device_type: str) -> int:
    """Tokens of a chunk: a fixed amount of memory, and no more than a quarter of the whole logits."""
    kind = "cpu" if device_type == "cpu" else "cuda"
    within_memory = CHUNK_LOGITS[kind] // max(1, columns)
    quarter = -(-tokens // 4)
    return max(LEAST_CHUNK[kind], min(within_memory, quarter))
