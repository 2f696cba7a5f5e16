"""Every patch and every private API of torch, Megatron-core, Transformer Engine and vLLM, each one function.

A function here stands between the project and something of a library that no promise of it covers. Its record says
what would be seen without it, and when it can go (`record.py`); tests/unit/upstream holds that it is still needed on
the pinned versions, docs/upstream.md lists all. Nothing outside this room reaches for a private name of a library.
"""
