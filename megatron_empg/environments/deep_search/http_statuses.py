"""What a status other than 200 says of a request, to every client of this environment alike."""

from __future__ import annotations

REFUSED_QUERY = frozenset({400, 413, 414, 422})
"""The query itself is at fault. Others of 400 to 499 speak of token, address or load."""
NO_SUCH_ROUTE = frozenset({404, 405, 501})
NOT_ALLOWED = frozenset({401, 403})
_PASSING = frozenset({408, 409, 425, 429})


def passes(status: int) -> bool:
    """Whether another attempt may be answered better: load, a time limit, or a fault of the server."""
    return status in _PASSING or (status >= 500 and status not in NO_SUCH_ROUTE)
