"""Every patch and every private API of torch, Megatron-core, Transformer Engine and vLLM, each one function.

A function here stands between the project and what a library does not promise. Its record (`record.py`) says what
is seen without it and when it can go. It is still needed on the pinned versions, by tests/unit/upstream; all are
listed in docs/upstream.md. Nothing outside this room reaches for a private name of a library.
"""
