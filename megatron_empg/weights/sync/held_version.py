"""Which weights an engine says it holds: that ends with its process, and so tells one process from another."""

from __future__ import annotations

import httpx

from megatron_empg.common.http import bearer

NEVER_TOLD = "default"
"""What vLLM says before any version was set."""


def held_version(url: str, token: str, seconds: float) -> str | None:
    """The version that the engine's core names; None of one that does not answer within so many seconds."""
    try:
        reply = httpx.get(f"{url}/weight_info", headers=bearer(token), timeout=seconds, trust_env=False)
        reply.raise_for_status()
        return str(reply.json()["weight_version"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None
