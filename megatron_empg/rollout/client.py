"""One engine over HTTP: token ids in, token ids and their log-probs out.

aiohttp, because a request costs the driver 0.3 ms of CPU with it and 5 ms with httpx (measured, 32 at a time).
msgspec, because to write a prompt of 3,000 tokens and read an answer of 200 takes 0.32 ms with json, 0.04 with it.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import aiohttp
import msgspec

from megatron_empg.common.errors import EmpgError
from megatron_empg.common.http import bearer
from megatron_empg.rollout.busy_clock import BusyClock
from megatron_empg.rollout.threads import apart
from megatron_empg.weights.sync.held_version import NEVER_TOLD

UNVERSIONED = -1  # an engine that was never told which weights it holds
# What is larger is written and read in a thread, which costs 0.04 ms of CPU. A body of 64 KiB (540 tokens) is read
# in 0.11 ms, 8,192 ids are written in 0.04 ms (measured); a millisecond is 500 KiB or 200,000 ids.
LARGEST_INLINE_BYTES = 1 << 16
LARGEST_INLINE_TOKENS = 8192
SHORT = aiohttp.ClientTimeout(total=10.0)
"""For questions that an engine answers at once."""
COUNTERS = aiohttp.ClientTimeout(total=2.0)
"""For what an engine has counted, which a batch waits for at its begin and its end, and can do without."""


class EngineError(EmpgError, RuntimeError):
    """The engine did not answer, or answered that it failed. Another engine may do."""


class RequestRefused(EmpgError, RuntimeError):
    """The engine understood the request and refused it (status 4xx): it would refuse again."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Temperature 0 is greedy; `stop_token_ids` end a turn and are returned with it."""

    temperature: float
    stop_token_ids: tuple[int, ...] = ()
    top_p: float = 1.0


@dataclass(frozen=True)
class VersionSpan:
    """Tokens [start, end) of a generation were drawn from policy `version`."""

    version: int
    start: int
    end: int


@dataclass(frozen=True)
class Generation:
    """`logprobs[i]`: of token i under the distribution it was drawn from. `finish_reason`: "stop" or "length"."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str
    policy_versions: list[VersionSpan]


def request_body(prompt: list[int], sampling: Sampling, max_tokens: int, seed: int) -> dict[str, Any]:
    """Every sampling parameter is said, so that no default of the server ever decides."""
    parameters = {
        "n": 1,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "max_tokens": max_tokens,
        "min_tokens": 0,
        "seed": seed,
        "stop": [],
        "stop_token_ids": list(sampling.stop_token_ids),
        "ignore_eos": False,
        "logprobs": 0,  # of the sampled token alone
        "detokenize": False,
    }
    return {"token_ids": prompt, "sampling_params": parameters, "stream": False}


class EngineClient:
    """Use as `async with EngineClient(url, token) as client`. `timeout`: seconds for one request.

    `answered_at`: when a generation last came back, in seconds of the monotonic clock. `busy`: how long
    generations were under way. A cancelled request closes its connection, at which the engine stops generating.
    """

    def __init__(self, url: str, token: str, *, timeout: float = 600.0, max_connections: int = 1024) -> None:
        self.url = url.rstrip("/")
        self._headers = bearer(token)
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=min(timeout, 10.0))
        self._max_connections = max_connections
        self._session: aiohttp.ClientSession | None = None
        self.answered_at = float("-inf")
        self.busy = BusyClock()

    async def __aenter__(self) -> EngineClient:
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            timeout=self._timeout,
            connector=aiohttp.TCPConnector(limit=self._max_connections, keepalive_timeout=15.0),
            trust_env=False,  # engines are near: no proxy, no .netrc
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def generate(
        self, prompt_token_ids: list[int], sampling: Sampling, *, max_tokens: int, seed: int
    ) -> Generation:
        """One answer to the prompt. Raises EngineError or RequestRefused."""
        body = request_body(prompt_token_ids, sampling, max_tokens, seed)
        size = len(prompt_token_ids)
        content = await apart(size > LARGEST_INLINE_TOKENS, _to_json, body)
        with self.busy.work():
            reply = await self._call("POST", "/inference/v1/generate", content)
        self.answered_at = time.monotonic()
        return await apart(len(reply) > LARGEST_INLINE_BYTES, _read_generation, self.url, reply)

    async def health(self) -> bool:
        """Whether the engine answers and its core lives."""
        try:
            await self._call("GET", "/health", timeout=SHORT)
        except (EngineError, RequestRefused):
            return False
        return True

    async def knock(self) -> int:
        """The version of the weights that one token is sampled with, which shows that the engine computes at all.

        Raises EngineError, and RequestRefused.
        """
        body = request_body([0], Sampling(temperature=0.0), 1, 0)
        reply = await self._call("POST", "/inference/v1/generate", _to_json(body), SHORT)
        sampled = _read_generation(self.url, reply)
        if not sampled.policy_versions:
            raise EngineError(f"{self.url} sampled no token where one was asked for: {_excerpt(reply)}")
        return sampled.policy_versions[0].version

    async def metrics_page(self) -> str:
        """What the engine has counted, in Prometheus's text format. Raises EngineError or RequestRefused."""
        return (await self._call("GET", "/metrics", timeout=COUNTERS)).decode(errors="replace")

    async def policy_version(self) -> int:
        """Version of the weights the engine holds. Raises EngineError, and RequestRefused."""
        reply = await self._call("GET", "/weight_info", timeout=SHORT)
        try:
            return _version(json.loads(reply)["weight_version"])
        except (KeyError, TypeError, ValueError) as error:
            raise EngineError(f"{self.url} does not say its weights ({error!r}): {_excerpt(reply)}") from error

    async def _call(
        self, method: str, path: str, body: bytes | None = None, timeout: aiohttp.ClientTimeout | None = None
    ) -> bytes:
        if self._session is None:
            raise RuntimeError("EngineClient is not open: use `async with EngineClient(...) as client`")
        limit = timeout or self._timeout
        headers = None
        if body is not None:
            headers = {"Content-Type": "application/json"}
        try:
            async with self._session.request(
                method, self.url + path, data=body, headers=headers, timeout=limit
            ) as reply:
                content = await reply.read()
        except aiohttp.ClientError as error:
            raise EngineError(f"{self.url}{path}: {type(error).__name__} {error}") from error
        except TimeoutError as error:
            raise EngineError(f"{self.url}{path}: no answer after {limit.total:g} s") from error
        if reply.status >= 500:
            raise EngineError(f"{self.url}{path} answered {reply.status}: {_excerpt(content)}")
        if reply.status >= 400:
            raise RequestRefused(f"{self.url}{path} answered {reply.status}: {_excerpt(content)}")
        return content


def _to_json(body: dict[str, Any]) -> bytes:
    return msgspec.json.encode(body)


class _Sampled(msgspec.Struct):
    """A token that was sampled, as an engine tells its log-prob."""

    token_id: int
    logprob: float


class _Logprobs(msgspec.Struct):
    content: list[_Sampled]


class _Span(msgspec.Struct):
    """Tokens [start, end) and the name of the weights that they were drawn from."""

    version: str
    start: int
    end: int


class _Choice(msgspec.Struct):
    """One answer to a prompt."""

    token_ids: list[int]
    finish_reason: str | None
    logprobs: _Logprobs
    weight_versions: list[_Span] | None = None


class _Reply(msgspec.Struct):
    """What an engine answers a generation with, of which it says more that nobody reads."""

    choices: list[_Choice]


_replies = msgspec.json.Decoder(_Reply)


def _read_generation(url: str, content: bytes) -> Generation:
    """Raises EngineError for what is not a whole generation, as one whose log-probs are not numbers."""
    try:
        choice = _replies.decode(content).choices[0]
        versions = [_span(span) for span in choice.weight_versions or ()]
    except (msgspec.MsgspecError, IndexError, ValueError) as error:
        raise EngineError(f"{url} answered what is not a generation ({error!r}): {_excerpt(content)}") from error
    if choice.finish_reason not in ("stop", "length"):
        raise EngineError(f"{url} ended a generation by {choice.finish_reason!r}")
    sampled = [entry.token_id for entry in choice.logprobs.content]
    if sampled != choice.token_ids:
        raise EngineError(f"{url} returned log-probs of other tokens than it sampled")
    if choice.token_ids and not versions:
        raise EngineError(
            f"{url} does not say which version of the policy sampled its tokens (weight_versions is empty): it "
            "is not a server that megatron_empg started, or of another vLLM"
        )
    logprobs = [entry.logprob for entry in choice.logprobs.content]
    return Generation(choice.token_ids, logprobs, choice.finish_reason, versions)


def _span(span: _Span) -> VersionSpan:
    return VersionSpan(_version(span.version), span.start, span.end)


def _version(text: str) -> int:
    if text == NEVER_TOLD:
        return UNVERSIONED
    return int(text)


def _excerpt(content: bytes) -> str:
    return content[:300].decode(errors="replace")
