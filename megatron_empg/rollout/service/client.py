"""The trainer's side of the driver: plain HTTP, used on rank 0."""

import httpx

from megatron_empg.common.errors import EmpgError
from megatron_empg.common.http import bearer
from megatron_empg.rollout.service.evaluation import Evaluation
from megatron_empg.rollout.service.slots import StreamAccount


class DriverClientError(EmpgError, RuntimeError):
    """The driver did not answer, or says why it has no batch."""


class DriverGoneError(DriverClientError):
    """It did not answer at all, as when it was killed."""

    accident = True


class DriverClient:
    """Asks the driver at `url` for batches; ``timeout`` is the seconds one answer may take."""

    def __init__(self, url: str, token: str, *, timeout: float) -> None:
        self.url = url
        self._client = httpx.Client(base_url=url, headers=bearer(token), timeout=timeout, trust_env=False)

    def rollout(self, step: int) -> bytes:
        """The batch of a step, as `Batch.to_bytes` made it."""
        return self._post(f"/rollout/{step}").content

    def published(self, version: int, account: StreamAccount | None) -> None:
        """Tell that the engines hold these weights, and, for a stream that has yet to begin, where."""
        self._post(f"/published/{version}", {"account": None if account is None else account.to_json()})

    def evaluate(self, split: str, greedy: bool) -> Evaluation:
        """Success on a split's fixed questions."""
        return Evaluation(**self._post("/evaluate", {"split": split, "greedy": greedy}).json())

    def probe(self) -> int:
        """Play a few training questions before the first step; how many. Raises when they are worth nothing."""
        return int(self._post("/probe").json()["episodes"])

    def _post(self, path: str, body: object = None) -> httpx.Response:
        try:
            answer = self._client.post(path, json=body)
        except httpx.HTTPError as error:
            raise DriverGoneError(f"the driver at {self.url}{path}: {type(error).__name__} {error}") from error
        if answer.status_code != 200:
            raise DriverClientError(
                f"the driver at {self.url}{path} answered {answer.status_code}: {_explanation(answer)}"
            )
        return answer


def _explanation(answer: httpx.Response) -> str:
    """What the driver says of a failure: whole, since it shows an episode."""
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:500]
