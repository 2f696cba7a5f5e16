"""The weight-sync routes of several vLLM engines, driven as one (vLLM's VLLMWeightSyncClient protocol)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx

from megatron_empg.common.errors import EmpgError
from megatron_empg.common.http import bearer
from megatron_empg.weights.sync.waiting import NOT_THROUGH, PEER_LEFT


class WeightTransferError(EmpgError, RuntimeError):
    """A weight transfer that did not reach every engine; `engines` names those that failed, or trainer ranks.

    `passing`: whether it may go well another time.
    """

    def __init__(self, phase: str, failures: dict[str, str], *, passing: bool = True) -> None:
        self.phase, self.passing = phase, passing
        self.accident = passing  # so that a run ended by it goes on from its newest checkpoint
        self.engines = list(failures)
        reasons = "; ".join(f"{engine}: {reason}" for engine, reason in failures.items())
        super().__init__(f"weight transfer failed in {phase!r} on {len(failures)} engine(s): {reasons}")


OF_COLLECTIVES = ("gloo", "NCCL error", NOT_THROUGH, PEER_LEFT, "wait timeout after")
"""Words of an error that a broadcast or a meeting broke, which may be another engine's fault; the last are
those of torch's store."""
CLEAN_UP = 5.0
"""Seconds that engines have to close a session which broke off, whatever time is left."""


class EngineControl:
    """Calls the same route of all engines at once.

    A call ends within `timeout` seconds; those inside a `within` block all together within the block's.
    """

    def __init__(self, engine_urls: Sequence[str], token: str, timeout: float) -> None:
        if not engine_urls:
            raise ValueError("engine_urls is empty: weights need at least one engine to go to")
        self.urls = [url.rstrip("/") for url in engine_urls]
        self.world_sizes: list[int] = []
        self._timeout = timeout
        self._deadline: float | None = None
        self._failed: dict[str, BaseException] = {}
        self._asked: dict[str, Future[Any]] = {}
        self._phase = ""
        self._client = httpx.Client(
            headers=bearer(token),
            timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0)),
            # One connection a call: after an error the server closes the one it came on.
            limits=httpx.Limits(max_keepalive_connections=0),
            trust_env=False,  # engines are near: no proxy, no .netrc
        )
        self._threads = ThreadPoolExecutor(max_workers=2 * len(self.urls), thread_name_prefix="weights")

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """The calls inside the block, together with what the caller does between them, may take so long."""
        before, self._deadline = self._deadline, time.monotonic() + seconds
        try:
            yield
        finally:
            self._deadline = before

    def remaining(self) -> float:
        """Seconds that are left to the block around, or to a single call outside one; not below 0."""
        if self._deadline is None:
            return self._timeout
        return max(0.0, self._deadline - time.monotonic())

    def trouble(self) -> WeightTransferError | None:
        """What engines have already answered wrong in the call under way, while others of it may still wait."""
        failed = dict(self._failed)
        return WeightTransferError(self._phase, _causes(failed)) if failed else None

    def culprits(self) -> WeightTransferError | None:
        """The same of those that are to blame, as far as is known: one that only says that a broadcast broke may
        have waited for another one in vain."""
        to_blame = _to_blame(dict(self._failed))
        return WeightTransferError(self._phase, _reasons(to_blame)) if to_blame else None

    def silent(self) -> list[str]:
        """Engines that have not answered the call under way."""
        return [url for url, future in list(self._asked.items()) if not future.done()]

    def read_world_sizes(self) -> list[int]:
        """Workers of each engine (tensor × pipeline × data parallel)."""
        replies = self._call_all("world size", lambda index: ("GET", "get_world_size", {}))
        self.world_sizes = [int(reply["world_size"]) for reply in replies]
        return self.world_sizes

    def pause(self) -> None:
        """Freeze running requests and drop all KV caches: they go on under the new weights, recomputed."""
        query = {"params": {"mode": "keep", "clear_cache": "true"}}
        self._call_all("pause", lambda index: ("POST", "pause", query))

    def resume(self) -> None:
        self._call_all("resume", lambda index: ("POST", "resume", {}))

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """`rank_offset` of `init_info` is that of the first engine; the others follow."""

        def request(index: int) -> tuple[str, str, dict[str, Any]]:
            offset = init_info["rank_offset"] + sum(self.world_sizes[:index])
            info = init_info | {"rank_offset": offset}
            return "POST", "init_weight_transfer_engine", {"json": {"init_info": info}}

        self._call_all("connect", request)

    def start_weight_update(self) -> None:
        self._call_all("start", lambda index: ("POST", "start_weight_update", {}))

    def update_weights(self, update_info: Any) -> None:
        """Returns when every engine has received all."""
        body = {"json": {"update_info": update_info}}
        self._call_all("transfer", lambda index: ("POST", "update_weights", body))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._call_all("finish", lambda index: ("POST", "finish_weight_update", {}))
        if weight_version is not None:
            self.set_version(weight_version)

    def set_version(self, version: str) -> None:
        """What the engines write on every token they sample from now on."""
        body = {"json": {"new_version": version}}
        self._call_all("version", lambda index: ("POST", "update_weight_version", body))

    def abandon_update(self) -> None:
        """Close a session that broke off, wherever one is open, so that a new one can start. Never raises.

        vLLM has no route for it; it closes the session when an update fails, and an empty one does.
        """
        limited = {"json": {"update_info": {}}, "timeout": CLEAN_UP}
        closing = []
        for url in self.urls:
            closing.append(self._threads.submit(self._call, url, "POST", "update_weights", limited))
        for future in closing:
            future.exception()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _call_all(self, phase: str, request: Callable[[int], tuple[str, str, dict[str, Any]]]) -> list[Any]:
        self._phase, self._failed = phase, {}
        timeout = self.remaining()
        if timeout == 0.0:
            raise WeightTransferError(phase, dict.fromkeys(self.urls, "no time was left for it"))
        limit = httpx.Timeout(timeout, connect=min(timeout, 10.0))
        futures: dict[str, Future[Any]] = {}
        self._asked = futures
        for index, url in enumerate(self.urls):
            method, path, options = request(index)
            futures[url] = self._threads.submit(self._call, url, method, path, options | {"timeout": limit})
            futures[url].add_done_callback(partial(self._note, self._failed, url))
        failures: dict[str, BaseException] = {}
        for url, future in futures.items():
            error = future.exception()
            if error is not None:
                failures[url] = error
        if failures:
            raise WeightTransferError(phase, _causes(failures))
        return [future.result() for future in futures.values()]

    @staticmethod
    def _note(failed: dict[str, BaseException], url: str, future: Future[Any]) -> None:
        """An engine that failed is known at once, not only when the others have answered."""
        error = None if future.cancelled() else future.exception()
        if error is not None:
            failed[url] = error

    def _call(self, url: str, method: str, path: str, options: dict[str, Any]) -> Any:
        reply = self._client.request(method, f"{url}/{path}", **options)
        reply.raise_for_status()
        return reply.json()


def _causes(failures: dict[str, BaseException]) -> dict[str, str]:
    """The engines to blame, or all where none of them is, and what each says."""
    return _reasons(_to_blame(failures) or failures)


def _to_blame(failures: dict[str, BaseException]) -> dict[str, BaseException]:
    """One that went away or hangs makes the others fail in the same collective."""
    gone: dict[str, BaseException] = {}
    late: dict[str, BaseException] = {}
    own: dict[str, BaseException] = {}
    for url, error in failures.items():
        if isinstance(error, httpx.NetworkError | httpx.ProtocolError):
            gone[url] = error
        if isinstance(error, httpx.TimeoutException):
            late[url] = error
        if not any(words in _reason(error) for words in OF_COLLECTIVES):
            own[url] = error
    return gone or late or own


def _reasons(failures: dict[str, BaseException]) -> dict[str, str]:
    return {url: _reason(error) for url, error in failures.items()}


def _reason(error: BaseException) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"answered {error.response.status_code}: {error.response.text[:500]}"
    return f"{type(error).__name__}: {error}"
