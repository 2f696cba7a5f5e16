"""Asking over an engine whose answers follow from the seeds: interrupted, gone on with, and with errors."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_empg.environments.base import Task
from megatron_empg.evaluate.errors import EvaluationError
from megatron_empg.evaluate.play import play
from megatron_empg.evaluate.questions import Decoding, EvaluationPass, SampleOutcome, passes
from megatron_empg.evaluate.record import OutcomeRecord
from megatron_empg.recipe import Recipe
from megatron_empg.rollout.chat_tokens import ChatTokens
from megatron_empg.rollout.config import EvaluationConfig
from megatron_empg.rollout.episodes import Rollout
from megatron_empg.rollout.fleet import Fleet
from megatron_empg.rollout.service.rollout_service import RolloutService
from tests.support.limited import limited
from tests.support.one_turn import OneTurn, by_seed, questions_of
from tests.support.recipes import quickstart
from tests.support.stub_engine import StubEngine

TOKEN = "0123456789abcdef"


class Source:
    """Questions of one kind, in order."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def fixed(self, split: str, count: int) -> list[Task]:
        return questions_of([self.kind] * count, prefix=f"{split} ", hops=1)

    def make(self, task: Task) -> OneTurn:
        return OneTurn(task)


def recipe() -> Recipe:
    return quickstart("evaluation.questions=20", "run.seed=7")


@asynccontextmanager
async def driver(chat: ChatTokens, url: str, source: Any) -> Any:
    used = recipe()
    config, waits, turns = limited(2, 50, 500, concurrency=4)
    rollout = Rollout(Fleet([url]), TOKEN, chat, source.make, config, waits, max_turns=turns, seed=used.run.seed)
    async with rollout as connected:
        yield RolloutService(used.service_config(), source, connected)


def asked(decoding: Decoding = "sampled", samples: int = 2, kind: str = "seen") -> EvaluationPass:
    return EvaluationPass("test_id", decoding, Source(kind).fixed("test_id", 20), samples)


async def run(
    chat: ChatTokens, url: str, what: EvaluationPass, path: Path, stop_after: int | None = None
) -> list[SampleOutcome]:
    """Play a pass, or as far as until so many outcomes are on disk."""
    source = Source(what.tasks[0].kind)
    with OutcomeRecord(path, {"seed": 7}) as record:
        async with driver(chat, url, source) as opened:
            playing = asyncio.ensure_future(play(opened, what, "policy", record, lambda _: None))
            while stop_after is not None and len(record) < stop_after and not playing.done():
                await asyncio.sleep(0.001)
            if stop_after is not None:
                playing.cancel()
            return await playing


def test_an_interrupted_pass_goes_on_and_ends_like_one_that_was_not(chat: ChatTokens, tmp_path: Path) -> None:
    what = asked()
    with StubEngine(by_seed(chat), delay=0.02) as engine:
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(run(chat, engine.url, what, tmp_path / "cut.jsonl", stop_after=9))
        asked_before = len(engine.bodies)
        with OutcomeRecord(tmp_path / "cut.jsonl", {"seed": 7}) as record:
            kept = len(record)
        continued = asyncio.run(run(chat, engine.url, what, tmp_path / "cut.jsonl"))
        asked_again = len(engine.bodies) - asked_before
    with StubEngine(by_seed(chat)) as engine:
        whole = asyncio.run(run(chat, engine.url, what, tmp_path / "whole.jsonl"))
        assert len(engine.bodies) == 40
    assert 9 <= kept < 40
    assert asked_again == 40 - kept
    assert continued == whole
    assert 0 < sum(outcome.success for outcome in whole) < 40
    assert [(outcome.id, outcome.sample) for outcome in whole][:3] == [
        ("test_id 0", 0), ("test_id 0", 1), ("test_id 1", 0),
    ]  # fmt: skip
    assert {(outcome.turns, outcome.hops, outcome.end) for outcome in whole} <= {
        (1, 1, "success"),
        (1, 1, "failure"),
    }
    assert all(outcome.tokens > 1 for outcome in whole)


def test_a_finished_pass_asks_no_engine(chat: ChatTokens, tmp_path: Path) -> None:
    with StubEngine(by_seed(chat)) as engine:
        first = asyncio.run(run(chat, engine.url, asked(), tmp_path / "out.jsonl"))
        count = len(engine.bodies)
        assert asyncio.run(run(chat, engine.url, asked(), tmp_path / "out.jsonl")) == first
        assert len(engine.bodies) == count


@pytest.mark.parametrize(("decoding", "temperature"), [("sampled", 1.0), ("greedy", 0.0)])
def test_the_first_sample_is_that_of_trainings_own_evaluation(
    decoding: Decoding, temperature: float, chat: ChatTokens, tmp_path: Path
) -> None:
    """So the figures of a run's log and those of `empg evaluate` can be laid side by side."""

    async def evaluate(url: str) -> Any:
        async with driver(chat, url, Source("seen")) as opened:
            return await opened.evaluate("test_id", decoding == "greedy")

    with StubEngine(by_seed(chat)) as engine:
        ours = asyncio.run(run(chat, engine.url, asked(decoding, samples=1), tmp_path / "out.jsonl"))
        theirs = asyncio.run(evaluate(engine.url))
        seeds, bodies = engine.seeds, engine.bodies
    assert sum(outcome.success for outcome in ours) / 20 == theirs.success
    assert sorted(seeds[:20]) == sorted(seeds[20:])
    assert {body["sampling_params"]["temperature"] for body in bodies} == {temperature}


def test_errors_are_shown_and_tried_once_more(chat: ChatTokens, tmp_path: Path) -> None:
    what = asked(samples=1, kind="breaks")
    path = tmp_path / "out.jsonl"
    with StubEngine(by_seed(chat)) as engine:
        for tried in (1, 2):
            with pytest.raises(EvaluationError, match=r"(?s)20 of 20 episodes .* the tool is gone"):
                asyncio.run(run(chat, engine.url, what, path))
            assert len(engine.bodies) == 20 * tried
        outcomes = asyncio.run(run(chat, engine.url, what, path))
        assert len(engine.bodies) == 40, "a third time would end the same way"
    assert {(outcome.end, outcome.success) for outcome in outcomes} == {("error", False)}


TWO_QUESTIONS = EvaluationConfig(splits=["test_id"], questions=2, greedy=False)


def test_greedy_decoding_is_asked_once(tmp_path: Path) -> None:
    found = passes(Source("seen"), EvaluationConfig(questions=5), samples=3)  # type: ignore[arg-type]
    assert [(one.name, one.samples, one.episodes) for one in found] == [
        ("test_id sampled", 3, 15), ("test_id greedy", 1, 5),
        ("test_ood sampled", 3, 15), ("test_ood greedy", 1, 5),
    ]  # fmt: skip


def test_questions_of_one_name_are_refused() -> None:
    class Twins(Source):
        def fixed(self, split: str, count: int) -> list[Task]:
            return super().fixed(split, 1) * count

    with pytest.raises(EvaluationError, match="2 questions have 1 names"):
        passes(Twins("seen"), TWO_QUESTIONS, samples=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("hops", [True, "2", 1.0])
def test_hops_that_are_no_number_are_refused_before_anything_is_asked(hops: Any) -> None:
    class Strange(Source):
        def fixed(self, split: str, count: int) -> list[Task]:
            return [replace(task, hops=hops) for task in super().fixed(split, count)]

    with pytest.raises(EvaluationError, match=r"the hops of question 'test_id 0' are .*whole number or None"):
        passes(Strange("seen"), TWO_QUESTIONS, samples=1)  # type: ignore[arg-type]
