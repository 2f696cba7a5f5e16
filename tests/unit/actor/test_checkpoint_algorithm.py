"""What an algorithm carries from step to step goes into a checkpoint's manifest and comes back from there."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_empg.actor import checkpoint
from megatron_empg.actor.checkpoint import Checkpoints
from megatron_empg.actor.config import ActorConfig
from megatron_empg.algorithms.algorithm import Algorithm
from megatron_empg.algorithms.epo import Epo
from megatron_empg.algorithms.grpo import Grpo
from megatron_empg.weights.checkpoints.errors import CheckpointError


class History:
    """Counts batches."""

    def __init__(self) -> None:
        self.batches = [0.1]
        self.loaded: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches} if self.batches else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "total" in state:
            raise ValueError("a total, where batches are kept")
        self.loaded.append(state)


def checkpoints(monkeypatch: pytest.MonkeyPatch, algorithm: Any, manifest: dict[str, Any] | None = None) -> Any:
    """Of one rank, without a model; the newest checkpoint has this manifest."""
    monkeypatch.setattr(checkpoint, "on_first_rank", lambda work: work())
    monkeypatch.setattr(checkpoint, "finished_steps", lambda root: [4] if manifest is not None else [])
    monkeypatch.setattr(checkpoint, "load", lambda actor, root, step: manifest)
    monkeypatch.setattr(checkpoint.sharded_state, "kind", lambda actor: {})
    actor = SimpleNamespace(settings=ActorConfig(), scheduler=SimpleNamespace(num_steps=4))
    return Checkpoints(actor, Path("runs/x/checkpoints"), keep=2, algorithm=algorithm)


def test_a_manifest_holds_the_state_of_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written steps later, when the algorithm has gone on."""
    history = History()
    manifest = checkpoints(monkeypatch, history)._manifest(4)
    history.batches.append(0.2)
    assert manifest["algorithm"] == {"batches": [0.1]}
    assert "algorithm" not in checkpoints(monkeypatch, None)._manifest(4)


def test_the_state_comes_back_and_where_there_is_none_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints of before have none; those of an algorithm that keeps nothing have an empty one."""
    for manifest, expected in (
        ({"algorithm": {"batches": [0.1, 0.2]}}, [{"batches": [0.1, 0.2]}]),
        ({"algorithm": {}}, [{}]),
        ({}, []),
        (None, []),
    ):
        history = History()
        assert checkpoints(monkeypatch, history, manifest).load_newest() == (4 if manifest is not None else 0)
        assert history.loaded == expected
    assert checkpoints(monkeypatch, None, {"algorithm": {"batches": []}}).load_newest() == 4


def test_the_state_of_another_algorithm_is_refused_by_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoints/step_000004: a total, where batches are kept"):
        checkpoints(monkeypatch, History(), {"algorithm": {"total": 1.0}}).load_newest()
    plain = Algorithm(Grpo())
    state = {"regularizer": {"total": 1.0}}
    with pytest.raises(CheckpointError, match="keeps no state"):
        checkpoints(monkeypatch, plain, {"algorithm": state}).load_newest()


def test_a_history_that_was_never_saved_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh, resumed = Algorithm(Grpo(regularizer=Epo())), Algorithm(Grpo(regularizer=Epo()))
    for manifest in ({}, {"algorithm": {}}):
        checkpoints(monkeypatch, resumed, manifest).load_newest()
        assert resumed.state_dict() == fresh.state_dict()
