"""The trainer's side of the driver: plain HTTP, used on rank 0.

A driver that is gone may be started again: it is waited for, told anew which weights there are, and asked again.
"""

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import httpx

from megatron_empg.common.errors import EmpgError
from megatron_empg.common.http import bearer
from megatron_empg.rollout.service.evaluation import Evaluation
from megatron_empg.rollout.service.slots import StreamAccount
from megatron_empg.rollout.service.stale_engines import PASSES, UNTOLD, WANTS_WEIGHTS, StaleEngines, TrainerNews

_log = logging.getLogger(__name__)
ASK_AGAIN_SECONDS = 0.5


class RolloutServiceClientError(EmpgError, RuntimeError):
    """The driver did not answer, or says why it has no batch."""


class RolloutServiceGoneError(RolloutServiceClientError):
    """It did not answer at all, as when it was killed."""

    accident = True


class RolloutServiceSilentError(RolloutServiceClientError):
    """It took the question and did not answer within its time."""

    accident = True


class RolloutServiceAccident(RolloutServiceClientError):
    """It has no batch, because of something that may be otherwise another time."""

    accident = True


@dataclass(frozen=True)
class TrainerPost:
    """What was posted to a path; `engines`: those it names."""

    path: str
    body: object
    engines: tuple[str, ...] = ()


class RolloutServiceClient:
    """Asks the driver at `url` for batches; ``timeout`` is the seconds one answer may take.

    `patience`: seconds within which one that is gone must be back.
    """

    def __init__(self, url: str, token: str, *, timeout: float, patience: float = 0.0) -> None:
        self.url, self._patience = url, patience
        self._client = httpx.Client(base_url=url, headers=bearer(token), timeout=timeout, trust_env=False)
        self._told: dict[TrainerNews, TrainerPost] = {}
        """What a driver that was started again must be told."""

    def rollout(self, step: int) -> bytes | StaleEngines:
        """The batch of a step, as `Batch.to_bytes` made it."""
        answer = self._ask(f"/rollout/{step}")
        return answer if isinstance(answer, StaleEngines) else answer.content

    def hold(self, urls: Sequence[str], version: int) -> None:
        """Tell that these engines hold these weights; nothing is said of others that were told to hold them."""
        told = _held(version, urls)
        self._tell(told)
        before = self._told.get(TrainerNews.ENGINES)
        if before is not None and before.path == told.path:
            told = _held(version, [*before.engines, *urls])
        self._told[TrainerNews.ENGINES] = told

    def published(self, version: int, account: StreamAccount | None) -> None:
        """Tell that the engines hold these weights, and, for a stream that has yet to begin, where."""
        body = {"account": None if account is None else account.to_json()}
        told = TrainerPost(f"/published/{version}", body)
        self._tell(told)
        self._told[TrainerNews.STREAM] = told

    def evaluate(self, split: str, greedy: bool) -> Evaluation | StaleEngines:
        """Success on a split's fixed questions."""
        answer = self._ask("/evaluate", {"split": split, "greedy": greedy})
        return answer if isinstance(answer, StaleEngines) else Evaluation(**answer.json())

    def probe(self) -> int | StaleEngines:
        """Play a few training questions before the first step; how many. Raises when they are worth nothing."""
        answer = self._ask("/probe")
        return answer if isinstance(answer, StaleEngines) else int(answer.json()["episodes"])

    def _ask(self, path: str, body: object = None) -> httpx.Response | StaleEngines:
        """The answer of a driver that knows which weights there are, or engines that want some.

        Where it was started again, it is told what it must know, and no engine is named: whoever asked asks again.
        """
        try:
            answer = self._post(path, body)
        except RolloutServiceGoneError as error:
            self._wait(error)
            self._tell_again()
            return StaleEngines(())
        if answer.status_code == UNTOLD and _missing(answer) in self._told:
            self._tell_again()
            return StaleEngines(())
        _check(answer, self.url + path)
        return StaleEngines.from_json(answer.json()) if answer.status_code == WANTS_WEIGHTS else answer

    def _tell(self, told: TrainerPost) -> None:
        """Of one that was started again where the first one is gone."""
        try:
            answer = self._post(told.path, told.body)
        except RolloutServiceGoneError as error:
            self._wait(error)
            answer = self._post(told.path, told.body)
        _check(answer, self.url + told.path)

    def _tell_again(self) -> None:
        for news in TrainerNews:
            if news in self._told:
                self._tell(self._told[news])

    def _wait(self, error: RolloutServiceGoneError) -> None:
        """Until it answers again. Raises the error where it does not."""
        if self._patience:
            _log.warning("%s; waiting for it to be started again", error)
        until = time.monotonic() + self._patience
        while time.monotonic() < until:
            time.sleep(ASK_AGAIN_SECONDS)
            with suppress(httpx.HTTPError):
                if self._client.get("/health", timeout=5.0).status_code == 200:
                    return
        raise error

    def _post(self, path: str, body: object) -> httpx.Response:
        try:
            return self._client.post(path, json=body)
        except httpx.ReadTimeout as error:
            raise RolloutServiceSilentError(_failed(self.url + path, error)) from error
        except httpx.HTTPError as error:
            raise RolloutServiceGoneError(_failed(self.url + path, error)) from error


def _held(version: int, urls: Sequence[str]) -> TrainerPost:
    """That engines hold the weights of a version."""
    engines = sorted(set(urls))
    return TrainerPost(f"/engines/{version}", {"engines": engines}, tuple(engines))


def _missing(answer: httpx.Response) -> TrainerNews | None:
    """What a driver that was started again must be told; None where it does not say."""
    try:
        return TrainerNews(answer.json()["missing"])
    except (ValueError, KeyError, TypeError):
        return None


def _failed(where: str, error: httpx.HTTPError) -> str:
    return f"the driver at {where}: {type(error).__name__} {error}"


def _check(answer: httpx.Response, where: str) -> None:
    """Raises RolloutServiceClientError for an answer that says why there is nothing."""
    if answer.status_code in (200, WANTS_WEIGHTS):
        return
    told = f"the driver at {where} answered {answer.status_code}: {_explanation(answer)}"
    if answer.status_code == PASSES:
        raise RolloutServiceAccident(told)
    raise RolloutServiceClientError(told)


def _explanation(answer: httpx.Response) -> str:
    """What the driver says of a failure: whole, since it shows an episode."""
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:500]
