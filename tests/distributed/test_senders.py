"""Every pipeline stage, and every rank with experts of its own, sends what it has to the engines.

gloo and the trainer's ranks are real; the engine is a stand-in that receives as a worker does.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.actor_cases import answer, fresh_actor, run_cases
from tests.distributed.ranks import run_ranks
from tests.support.models import save_random_model
from tests.support.weight_engines import ReceivingEngine

OVERLAPPED = {"distributed_optimizer": True, "overlap": True}


@dataclass(frozen=True)
class Case:
    """A layout, and the ranks that send in it: of each, whether it has experts alone."""

    layout: dict[str, Any]
    model: str
    senders: dict[int, int]
    """Rank to number among the senders."""
    settings: dict[str, Any]

    @property
    def __name__(self) -> str:
        return f"{self.model} " + " ".join(f"{name}={size}" for name, size in self.layout.items())

    def __call__(self, folder: Path) -> dict[str, Any]:
        return sent_by(self, folder)


TWO = [
    Case({"pipeline": 2}, "tied", {0: 0, 1: 1}, {}),
    Case({"pipeline": 2, "virtual_pipeline": 2}, "untied", {0: 0, 1: 1}, {}),
    Case({"data": 2}, "tied", {0: 0}, OVERLAPPED),
    Case({"data": 2, "expert": 2}, "experts", {0: 0, 1: 1}, {}),
    Case({"tensor": 2, "sequence_parallel": True, "expert": 2}, "experts", {0: 0, 1: 1}, {}),
]
FOUR = [
    Case({"tensor": 2, "pipeline": 2}, "untied", {0: 0, 2: 1}, {}),
    Case({"pipeline": 2, "data": 2, "expert": 2}, "experts", {0: 0, 1: 1, 2: 2, 3: 3}, OVERLAPPED),
]


class Trial:
    """A publisher on every rank and one engine, which rank 0 has; what each rank made of the weights is noted."""

    def __init__(self, actor: Any) -> None:
        from megatron_empg.weights.sync.together import TrainerRanks
        from megatron_empg.weights.sync.transfer import WeightPublisher

        actor.settle()
        self.weights = actor.weights()
        ranks = TrainerRanks()
        self.engine = ReceivingEngine() if ranks.rank == 0 else None
        url = ranks.gathered(self.engine.url if self.engine else "")[0]
        self.publisher = WeightPublisher([url], "t", device="cpu", timeout=90.0, ranks=ranks)
        self.held: set[str] = set()
        self._unshard = self.weights._unshard
        self.weights._unshard = self.noted

    def noted(self, parameter: Any, shard: torch.Tensor) -> torch.Tensor:
        self.held |= set(parameter.hf)
        return self._unshard(parameter, shard)

    def close(self) -> None:
        self.publisher.close()
        if self.engine:
            self.engine.stop()


def sent_by(case: Case, folder: Path) -> dict[str, Any]:
    actor = fresh_actor(folder, case.layout, model=case.model, **case.settings)
    actor.settle()
    whole = {name: tensor.clone() for name, tensor in actor.weights()}
    trial = Trial(actor)
    try:
        reports = [trial.publisher.publish(trial.weights, version) for version in (1, 2)]
    finally:
        trial.close()
    if trial.engine:
        arrived = trial.engine.weights
        assert arrived.keys() == whole.keys()
        assert all(torch.equal(arrived[name], tensor) for name, tensor in whole.items())
        assert (trial.engine.version, trial.engine.paused) == ("2", False)
    return {
        "sender": trial.weights.sender, "stages": trial.weights.stages(), "held": trial.held,
        "reports": reports, "bytes": sum(tensor.nbytes for tensor in whole.values()), "names": set(whole),
    }  # fmt: skip


def a_stage_that_fails(folder: Path) -> list[str]:
    """The second stage's source breaks off: nobody waits, and all know why. Afterwards all is sent again."""
    trial = Trial(fresh_actor(folder, {"pipeline": 2}, model="tied"))
    own_part = trial.weights.own_part

    def broken() -> Iterator[tuple[str, torch.Tensor]]:
        for number, pair in enumerate(own_part()):
            if number == 3 and trial.weights.sender == 1:
                raise KeyError("no such shard")
            yield pair

    told = []
    try:
        trial.weights.own_part = broken
        trial.publisher.publish(trial.weights, 1)
    except Exception as error:
        told.append(f"{type(error).__name__}: {error}")
    try:
        trial.weights.own_part = own_part
        told.append(str(trial.publisher.publish(trial.weights, 2).tensors))
    finally:
        trial.close()
    return told


def a_bit_that_flips(folder: Path) -> list[str]:
    """On the way from the second stage, once; then all is sent again."""
    from megatron_empg.weights.sync.engine_control import WeightTransferError

    trial = Trial(fresh_actor(folder, {"pipeline": 2}, model="tied"))
    left = [1]

    def flip(number: int, tensor: torch.Tensor) -> None:
        if number == 3 and left[0]:
            left[0] -= 1
            tensor.view(-1).view(torch.uint8)[2] ^= 64

    if trial.engine:
        trial.engine.on_arrival = flip
    told = []
    try:
        for version in (1, 2):
            try:
                told.append(str(trial.publisher.publish(trial.weights, version).tensors))
            except WeightTransferError as error:
                told.append(str(error))
    finally:
        trial.close()
    return told


def an_engine_that_will_not_come(folder: Path) -> tuple[str, float]:
    """It refuses to join the senders, and is heard by rank 0 alone; what each rank raised, and after how long."""
    from megatron_empg.weights.sync.engine_control import WeightTransferError

    trial = Trial(fresh_actor(folder, {"pipeline": 2}, model="tied"))
    if trial.engine:
        trial.engine.refuses["init_weight_transfer_engine"] = 500
    told, started = "", time.monotonic()
    try:
        trial.publisher.connect(trial.weights)
    except WeightTransferError as error:
        told = str(error)
    finally:
        trial.close()
    return told, time.monotonic() - started


def a_publisher_on_rank_0_alone(folder: Path) -> str:
    """What another rank has to send would never come: an error says so at once."""
    import torch.distributed as dist

    from megatron_empg.weights.sync.transfer import WeightPublisher

    weights = fresh_actor(folder, {"pipeline": 2}, model="tied").weights()
    told = ""
    if dist.get_rank() == 0:
        engine = ReceivingEngine()
        publisher = WeightPublisher([engine.url], "t", device="cpu", timeout=60.0)
        try:
            publisher.connect(weights)
        except ValueError as error:
            told = str(error)
        finally:
            publisher.close()
            engine.stop()
    dist.barrier()
    return told


FAULTS = [a_stage_that_fails, a_bit_that_flips, an_engine_that_will_not_come, a_publisher_on_rank_0_alone]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("senders")
    for name, shape in (("tied", "qwen2"), ("untied", "qwen2-untied"), ("experts", "qwen3_moe")):
        save_random_model(made / name, shape)
    return made


@pytest.fixture(scope="module")
def of_two(folder: Path) -> list[dict[str, Any]]:
    return run_ranks(partial(run_cases, [*TWO, *FAULTS]), 2, str(folder))


@pytest.fixture(scope="module")
def of_four(folder: Path) -> list[dict[str, Any]]:
    return run_ranks(partial(run_cases, FOUR), 4, str(folder))


def assert_each_sends_its_own(case: Case, results: list[dict[str, Any]]) -> None:
    ranks = [answer(results, case, rank) for rank in range(len(results))]
    assert {
        rank: found["sender"] for rank, found in enumerate(ranks) if found["sender"] is not None
    } == case.senders
    stages = ranks[0]["stages"]
    assert all(found["stages"] == stages for found in ranks)
    names = [sent.name for stage in stages for sent in stage]
    assert len(names) == len(set(names))
    assert set(names) == ranks[0]["names"]
    ranks_of_a_stage = len(results) // len(stages)
    for rank, found in enumerate(ranks):
        stage = stages[rank // ranks_of_a_stage]
        own = {sent.name for sent in stage if sent.sender == found["sender"]}
        others_experts = {sent.name for sent in stage if ".experts." in sent.name} - own
        assert own <= found["held"] <= {sent.name for sent in stage} - others_experts
        for report in found["reports"]:
            assert (report.bytes, report.tensors) == (ranks[0]["bytes"], len(names))


@pytest.mark.parametrize("case", TWO, ids=lambda case: case.__name__)
def test_each_of_two_ranks_sends_its_own(case: Case, of_two: list[dict[str, Any]]) -> None:
    assert_each_sends_its_own(case, of_two)


@pytest.mark.parametrize("case", FOUR, ids=lambda case: case.__name__)
def test_each_of_four_ranks_sends_its_own(case: Case, of_four: list[dict[str, Any]]) -> None:
    assert_each_sends_its_own(case, of_four)


def test_a_stage_that_fails_ends_it_on_all_ranks(of_two: list[dict[str, Any]]) -> None:
    first, second = (answer(of_two, a_stage_that_fails, rank) for rank in (0, 1))
    assert first[0].startswith(
        "WeightTransferError: weight transfer failed in 'transfer' on 1 engine(s): trainer rank 1: KeyErr"
    )
    assert second[0] == "KeyError: 'no such shard'"
    assert first[1] == second[1] != "0"


def test_what_changes_on_its_way_from_a_stage_ends_it_on_all_ranks(of_two: list[dict[str, Any]]) -> None:
    first, second = (answer(of_two, a_bit_that_flips, rank) for rank in (0, 1))
    assert "1 of " in first[0]
    assert "tensors changed on their way" in first[0]
    assert "trainer rank 0: " in second[0]
    assert first[1] == second[1] != "0", "the next one is whole"


def test_no_rank_waits_for_an_engine_that_will_not_come(of_two: list[dict[str, Any]]) -> None:
    for rank in (0, 1):
        told, seconds = answer(of_two, an_engine_that_will_not_come, rank)
        assert "answered 500" in told
        assert seconds < 20.0, "of the 45 s that a worker has to come"


def test_a_publisher_on_rank_0_alone_is_refused(of_two: list[dict[str, Any]]) -> None:
    told = answer(of_two, a_publisher_on_rank_0_alone)
    assert told.startswith("1 of the 2 trainer ranks that send are there; give every trainer rank a publisher")
