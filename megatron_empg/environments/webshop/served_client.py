"""Asks a WebShop site for pages: within a time that all attempts share, and never more than a page can be long."""

from __future__ import annotations

import os
import time
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from megatron_empg.common.attempts import all_failed, attempts
from megatron_empg.common.http import bearer
from megatron_empg.environments.webshop.errors import ShopServerError
from megatron_empg.environments.webshop.served_pages import Link

if TYPE_CHECKING:
    import ssl

    import httpx

TOKEN_VARIABLE = "EMPG_WEBSHOP_TOKEN"
"""The variable whose value is sent as a bearer token, for a site behind something that asks for one."""
_PASSING = (502, 503, 504)
_LONGEST_ATTEMPT = 20.0
_LONGEST_PAGE = 16 << 20
_SECONDS = 60.0


class ShopClient:
    """The client of one site for one visitor. It blocks."""

    def __init__(self, url: str, within: float | None = None) -> None:
        """`within`: seconds of all attempts for a page together."""
        self.url = url.rstrip("/")
        self._within = _SECONDS if within is None else within
        self._client: httpx.Client | None = None

    def get(self, address: str) -> tuple[str, str]:
        """The page at an address below the site's, and the address that it has. Raises ShopServerError."""
        return self._asked("GET", address, None)

    def follow(self, link: Link) -> tuple[str, str]:
        """The page that a link leads to, and its address. Raises ShopServerError."""
        return self._asked(link.method.upper(), link.address, None)

    def send(self, address: str, form: dict[str, str]) -> tuple[str, str]:
        """The page that answers a form, and its address. Raises ShopServerError."""
        return self._asked("POST", address, form)

    def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _asked(self, method: str, address: str, form: dict[str, str] | None) -> tuple[str, str]:
        where = urljoin(f"{self.url}/", address)
        if _site(where) != _site(self.url):
            raise self._failed(where, "the page leads to another site")
        made, failure = 0, ""
        for attempt in attempts(self._within, _LONGEST_ATTEMPT):
            made = attempt.number
            try:
                return self._attempt(method, where, form, attempt.seconds)
            except _Passing as error:
                failure = str(error)
            time.sleep(attempt.pause())
        raise self._failed(where, all_failed(made, failure))

    def _attempt(self, method: str, where: str, form: dict[str, str] | None, seconds: float) -> tuple[str, str]:
        import httpx

        end = time.monotonic() + seconds
        try:
            with self._connected().stream(method, where, data=form, timeout=seconds) as answer:
                if answer.status_code in _PASSING:
                    raise _Passing(f"status {answer.status_code}")
                if answer.status_code != 200:
                    raise self._failed(where, self._told(answer.status_code))
                return self._body(where, answer, end), str(answer.url)
        except httpx.TooManyRedirects:
            raise self._failed(where, "it redirects without end") from None
        except httpx.TransportError as error:
            raise _Passing(f"{type(error).__name__}: {error}") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._failed(where, f"{type(error).__name__}: {error}") from None

    def _body(self, where: str, answer: httpx.Response, end: float) -> str:
        parts = bytearray()
        for part in answer.iter_bytes(1 << 16):
            parts += part
            if len(parts) > _LONGEST_PAGE:
                raise self._failed(where, f"the page is larger than {_LONGEST_PAGE} bytes")
            if time.monotonic() > end:
                raise _Passing("the page did not end in time")
        return parts.decode("utf-8", "replace")

    def _connected(self) -> httpx.Client:
        import httpx

        if self._client is None:
            token = os.environ.get(TOKEN_VARIABLE, "")
            if token:
                headers = bearer(token)
            else:
                headers = {}
            self._client = httpx.Client(
                headers=headers, follow_redirects=True, trust_env=False, verify=_certificates()
            )
        return self._client

    def _told(self, status: int) -> str:
        if status in (401, 403):
            return f"status {status}: {TOKEN_VARIABLE} must hold the token that it asks for"
        return f"status {status}; is this the address of a WebShop site, and has its log an error?"

    def _failed(self, where: str, fault: str) -> ShopServerError:
        return ShopServerError(f"the WebShop server at {self.url}, asked for {where[:200]}: {fault}")


def _site(url: str) -> tuple[str, str]:
    """Its scheme too: what is sent to the site over https, a token among it, must not go out in the clear."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


@cache
def _certificates() -> ssl.SSLContext:
    """Those that are trusted. Reading them takes some 30 ms, which each episode would spend anew."""
    import httpx

    return httpx.create_ssl_context(trust_env=False)


class _Passing(Exception):
    """A failure that another attempt may cure."""
