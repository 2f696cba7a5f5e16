"""How a run's processes reach each other's HTTP servers: the token they show, and whether a server is healthy.

The standard library of Python 3.9 is all it needs, since the launcher asks from a cluster's batch host.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

from megatron_empg.common.errors import EmpgError

POLL_SECONDS = 0.1


class NotHealthyError(EmpgError, RuntimeError):
    """A server did not become healthy in time; its own log says why."""

    accident = True


def bearer(token: str) -> dict[str, str]:
    """The header that shows a token."""
    return {"Authorization": f"Bearer {token}"}


def healthy(url: str, token: str, seconds: float = 10.0, path: str = "/health") -> bool:
    """Whether GET `url` + `path` answers 200 within so many seconds."""
    return answered_status(url, token, seconds, path) == 200


def answered_status(url: str, token: str, seconds: float, path: str) -> int | None:
    """The status with which GET `url` + `path` is answered within so many seconds; None where it is not.

    No proxy is asked: these servers are near.
    """
    place = urlsplit(url)
    connection = HTTPConnection(place.hostname or "", place.port, timeout=seconds)
    try:
        connection.request("GET", place.path.rstrip("/") + path, headers=bearer(token))
        return connection.getresponse().status
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()


def wait_until_healthy(
    urls: Sequence[str], token: str, *, timeout: float, check: Callable[[], None] = lambda: None
) -> None:
    """Wait until each server answers GET /health. Raises NotHealthyError naming the one that does not.

    `timeout`: seconds for all of them together. `check` is called while waiting, to raise when waiting on is
    pointless.
    """
    deadline = time.monotonic() + timeout
    for url in urls:
        while not healthy(url, token):
            check()
            if time.monotonic() > deadline:
                raise NotHealthyError(f"{url} was not healthy after {timeout:.0f} s")
            time.sleep(POLL_SECONDS)
