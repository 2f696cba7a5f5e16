"""Asks a search service: JSON by POST, within a time that all attempts share."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from megatron_empg.common.attempts import all_failed, attempts
from megatron_empg.common.http import bearer
from megatron_empg.environments.blocking import in_thread
from megatron_empg.environments.deep_search.http_statuses import (
    NO_SUCH_ROUTE,
    NOT_ALLOWED,
    REFUSED_QUERY,
    passes,
)
from megatron_empg.environments.deep_search.tools import QueryRefused, SearchServiceError

if TYPE_CHECKING:
    import httpx

TOKEN_VARIABLE = "EMPG_SEARCH_TOKEN"
"""The variable that holds the token of a search service, which is not the run's: a service may be another's."""

T = TypeVar("T")


@dataclass(frozen=True)
class ClientLimits:
    """`within`: seconds of all attempts and the pauses between them; `attempt`: of one attempt at most, from the
    connection to the last byte; `answer_bytes`: of one answer."""

    within: float = 60.0
    attempt: float = 20.0
    answer_bytes: int = 16 << 20

    @classmethod
    def of(cls, within: float | None) -> ClientLimits:
        """The limits, with another time for all attempts where one is given."""
        if within is None:
            return cls()
        return cls(within=within)


class NoSuchRoute(SearchServiceError):
    """The server does not know the path."""


class _Passing(Exception):
    """A failure that another attempt may cure."""


class ServiceClient:
    """The client of one service, for any number of coroutines at once. The token of `EMPG_SEARCH_TOKEN` is sent
    where it is set."""

    def __init__(self, url: str, limits: ClientLimits | None = None) -> None:
        """Raises ValueError for what is no URL of a server."""
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"search_url is {url!r}; it starts with http:// or https://")
        self.url = url.rstrip("/")
        self.limits = limits or ClientLimits()
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def ask(self, route: str, asked: dict[str, Any], read: Callable[[Any], T], tool: str = "") -> T:
        """What `read` makes of the JSON of an answer, after as many attempts as the time allows.

        `read` runs in a thread and raises ValueError, LookupError, TypeError or OverflowError for an answer that
        is malformed; `tool` is what the policy calls the route. Raises QueryRefused, or SearchServiceError naming
        the URL.
        """
        body = await self._repeated(route, asked, tool or route)
        # Up to `answer_bytes` of JSON and text are too much work for the loop of all episodes.
        return await in_thread(self._read, route, body, read)

    async def close(self) -> None:
        """Close the connections. The next request opens others."""
        client, self._client = self._client, None
        if client is not None and self._loop is asyncio.get_running_loop():
            await client.aclose()

    def _read(self, route: str, body: bytes, read: Callable[[Any], T]) -> T:
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise self._failed(route, f"the answer is not JSON ({error}): {body[:100]!r}") from None
        try:
            return read(answer)
        except (ValueError, LookupError, TypeError, OverflowError) as error:
            if isinstance(error, ValueError):
                told = str(error)
            else:
                told = repr(error)
            raise self._failed(route, f"the answer is malformed: {told:.300}") from None

    async def _repeated(self, route: str, asked: dict[str, Any], tool: str) -> bytes:
        made, failure = 0, ""
        clock = asyncio.get_running_loop().time
        for attempt in attempts(self.limits.within, self.limits.attempt, clock):
            made = attempt.number
            try:
                async with asyncio.timeout(attempt.seconds):
                    return await self._attempt(route, asked, tool)
            except TimeoutError:
                failure = f"no whole answer within {attempt.seconds:.3g} s"
            except _Passing as error:
                failure = str(error)
            await asyncio.sleep(attempt.pause())
        raise self._failed(route, all_failed(made, failure))

    async def _attempt(self, route: str, asked: dict[str, Any], tool: str) -> bytes:
        import httpx

        try:
            # In ASCII: half a surrogate pair, which a policy can write, is no UTF-8.
            content = json.dumps(asked).encode("ascii")
            async with self._connected().stream("POST", f"{self.url}/{route}", content=content) as answer:
                if answer.status_code != 200:
                    raise self._fault_of(route, answer.status_code, tool)
                return await self._body(route, answer)
        except httpx.HTTPError as error:
            raise _Passing(f"{type(error).__name__}: {error}") from None

    def _fault_of(self, route: str, status: int, tool: str) -> Exception:
        """What an answer of a status other than 200 is."""
        if passes(status):
            return _Passing(f"status {status}")
        if status in REFUSED_QUERY:
            return QueryRefused(f"the {tool} was refused")
        if status in NO_SUCH_ROUTE:
            return NoSuchRoute(
                f"{self._named(route)}: status {status}; is this the address of such a search server?"
            )
        if status in NOT_ALLOWED:
            return self._failed(route, f"status {status}: {TOKEN_VARIABLE} must hold the server's token")
        return self._failed(route, f"status {status}")

    async def _body(self, route: str, answer: httpx.Response) -> bytes:
        """The bytes of an answer; those that pass the limit are not read."""
        encoding = answer.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise self._failed(route, f"the answer is compressed ({encoding:.20}), which was not asked for")
        parts = bytearray()
        async for part in answer.aiter_raw(1 << 16):
            parts += part
            if len(parts) > self.limits.answer_bytes:
                raise self._failed(route, f"the answer is larger than {self.limits.answer_bytes} bytes")
        return bytes(parts)

    def _connected(self) -> httpx.AsyncClient:
        """The client of the running event loop: connections belong to the loop that opened them."""
        import httpx

        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
            token = os.environ.get(TOKEN_VARIABLE, "")
            if token:
                headers |= bearer(token)
            pool = httpx.Limits(max_connections=None, max_keepalive_connections=64)
            # Time limits are those of `_repeated`, for an attempt as a whole. A service lies on this machine or
            # beside it, so that no proxy is asked.
            self._client = httpx.AsyncClient(headers=headers, timeout=None, limits=pool, trust_env=False)
            self._loop = loop
        return self._client

    def _failed(self, route: str, fault: str) -> SearchServiceError:
        return SearchServiceError(f"{self._named(route)}: {fault}")

    def _named(self, route: str) -> str:
        return f"the search server at {self.url}/{route}"
