"""Engines that come to a run, as somebody asks for them from outside."""

from __future__ import annotations

from urllib.parse import urlsplit

from megatron_empg.common.errors import EmpgError


class UnusableRequest(EmpgError, ValueError):
    """What was asked for is not what can be asked for; the message says what can."""


def added_engines(asked: object) -> list[str]:
    """The addresses in `{"engines": ["http://10.0.0.7:8000"]}`, without a / at their ends.

    Raises UnusableRequest.
    """
    urls = asked.get("engines") if isinstance(asked, dict) else None
    if not isinstance(urls, list) or not urls:
        raise UnusableRequest(
            f'the body is {_short(asked)}, and must be a list of engines: {{"engines": ["http://HOST:PORT"]}}'
        )
    return [_address(url) for url in urls]


def _address(url: object) -> str:
    if not isinstance(url, str) or not _is_server(url):
        raise UnusableRequest(
            f"engine {_short(url)} is not the address of a server: give http://HOST:PORT, with nothing after it"
        )
    return url.rstrip("/")


def _is_server(url: str) -> bool:
    """Whether it names a host and a port, over plain HTTP as all engines, and neither a user nor a page."""
    try:
        parts = urlsplit(url)
        complete = parts.hostname is not None and parts.port is not None
    except ValueError:
        return False
    more = parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc
    return parts.scheme == "http" and complete and not more and url.isprintable() and " " not in url


def _short(given: object) -> str:
    shown = repr(given)
    return shown if len(shown) <= 200 else shown[:200] + " …"
