"""The HTTP client of a preparation: its waits, its retries, and who is shown the hub's token."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from megatron_empg.common.http import bearer
from megatron_empg.prepare.errors import PrepareError, SourceUnavailable
from megatron_empg.prepare.places import is_url, shown

if TYPE_CHECKING:
    import httpx

TOKEN_VARIABLE = "HF_TOKEN"
ENDPOINT_VARIABLE = "HF_ENDPOINT"
DEFAULT_ENDPOINT = "https://huggingface.co"
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that another attempt may not meet."""
_REFUSED = frozenset({401, 403})
_GONE = frozenset({404, 410, 451})


def new_client(connections: int) -> httpx.Client:
    """A client for so many threads. It follows redirects and leaves credentials at the host they are for."""
    import httpx

    timeout = httpx.Timeout(60.0, connect=30.0)
    limits = httpx.Limits(max_connections=connections * 2)
    headers = {"Accept-Encoding": "identity", "User-Agent": "megatron_empg"}
    return httpx.Client(timeout=timeout, limits=limits, headers=headers, follow_redirects=True)


def endpoint() -> str:
    """The hub's address: a mirror's where the user names one. Raises PrepareError for what is no address."""
    given = os.environ.get(ENDPOINT_VARIABLE, "").strip().rstrip("/")
    if given and not is_url(given):
        # What it holds is not shown: it may be a password.
        raise PrepareError(
            f"{ENDPOINT_VARIABLE} is not an address: it must be http(s)://HOST[:PORT][/PATH], or unset"
        )
    return given or DEFAULT_ENDPOINT


def hub_headers() -> Mapping[str, str]:
    """What requests to the hub carry. A redirect to another host drops it."""
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        return {}
    return bearer(token)


def refusal(status: int, url: str) -> PrepareError | None:
    """The error of a status that another attempt cannot cure; None for one that may pass, or is no fault."""
    where = shown(url)
    if status in _REFUSED:
        return SourceUnavailable(
            f"{where} answers {status}: it needs a token or a licence that is not accepted yet; accept it on the "
            f"repository's page and set {TOKEN_VARIABLE} in the environment"
        )
    if status in _GONE:
        return SourceUnavailable(f"{where} answers {status}: there is no such file")
    if status in PASSING or status < 400 or status == 416:
        return None
    return PrepareError(f"{where} answers {status}")
