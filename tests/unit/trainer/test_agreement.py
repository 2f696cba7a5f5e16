"""Engines that do not compute the actor's policy are found, however few of their tokens show it, and named."""

import math

import pytest
import torch

from megatron_empg.actor.actor import Score
from megatron_empg.actor.packing import Sequence
from megatron_empg.recipe import Recipe, parse_recipe
from megatron_empg.trainer.agreement import FEW_TOKENS, check_agreement
from megatron_empg.trainer.batch import Batch
from megatron_empg.trainer.errors import TrainingError

OWN = 400
URLS = [f"http://engine{i}:8000" for i in range(32)]


def recipe(dtype: str = "bfloat16", **limits: float) -> Recipe:
    return parse_recipe({
        "run": {"folder": "runs/x", "steps": 1},
        "model": {"path": "models/x", "dtype": dtype},
        "environment": {"name": "deep_search"},
        "rollout": {"groups": 4, "group_size": 2},
        "limits": limits,
    })  # fmt: skip


def played(noise: float = 0.01, own: int = OWN) -> tuple[Batch, list[Score]]:
    """One episode of each engine; the engines' log-probs differ from the actor's by `noise` on average."""
    generator = torch.Generator().manual_seed(3)
    sequences, scores = [], []
    for _ in URLS:
        ours = -torch.rand(own, generator=generator)
        theirs = ours + noise * torch.randn(own, generator=generator)
        steps = torch.tensor([[5, 5 + own]])
        sequences.append(Sequence(torch.zeros(5 + own, dtype=torch.int), steps, {"rollout_logprobs": theirs}))
        scores.append(Score(ours, torch.full((own,), 0.5)))
    count = len(URLS)
    batch = Batch(
        sequences,
        torch.zeros(count),
        torch.arange(count) // 2,
        torch.full((count, 2), 7),
        engines=torch.arange(count),
        engine_urls=URLS,
    )
    return batch, scores


def test_engines_that_agree_pass_and_are_measured() -> None:
    batch, scores = played()
    metrics = check_agreement(batch, scores, 7, recipe())
    gaps = [abs(s.values["rollout_logprobs"] - a.logprobs) for s, a in zip(batch.sequences, scores, strict=True)]
    assert metrics["policy/logprob_gap_mean"] == pytest.approx(float(torch.cat(gaps).mean()), rel=1e-5)
    assert metrics["policy/logprob_gap_max"] == pytest.approx(float(torch.cat(gaps).max()), rel=1e-5)
    worst = max(float(gap.mean()) for gap in gaps)
    assert metrics["policy/logprob_gap_engine"] == pytest.approx(worst, rel=1e-5)
    assert metrics["policy/logprob_gap_episode"] == pytest.approx(worst, rel=1e-5)
    assert metrics["policy/entropy"] == 0.5


@pytest.mark.parametrize("bad", [-9999.0, math.nan, -math.inf])
def test_one_token_that_is_not_finite_stops_the_run_and_names_the_engine(bad: float) -> None:
    batch, scores = played()
    batch.sequences[19].values["rollout_logprobs"][133] = bad
    with pytest.raises(TrainingError, match=rf"1 of the engines' log-probs are not finite.*{URLS[19]}:"):
        check_agreement(batch, scores, 7, recipe())


def test_one_engine_of_many_that_is_wrong_by_one_nat_stops_the_run() -> None:
    batch, scores = played()
    batch.sequences[4].values["rollout_logprobs"] -= 1.0
    gaps = [abs(s.values["rollout_logprobs"] - a.logprobs) for s, a in zip(batch.sequences, scores, strict=True)]
    assert torch.cat(gaps).mean() < recipe().logprob_gap_limit  # the mean alone would pass
    with pytest.raises(TrainingError, match=rf"log-probs of {URLS[4]} differ .*limits.logprob_gap\)"):
        check_agreement(batch, scores, 7, recipe())


@pytest.mark.parametrize(("dtype", "noise", "gap"), [("float32", 1e-5, 0.11), ("bfloat16", 0.01, 20.5)])
def test_a_single_token_beyond_the_tail_limit_stops_the_run(dtype: str, noise: float, gap: float) -> None:
    batch, scores = played(noise)
    check_agreement(batch, scores, 7, recipe(dtype))
    batch.sequences[9].values["rollout_logprobs"][3] = scores[9].logprobs[3] - gap
    with pytest.raises(TrainingError, match=rf"{URLS[9]} .*limits.logprob_gap_max.*episode 9 "):
        check_agreement(batch, scores, 7, recipe(dtype, logprob_gap=0.099))
    assert check_agreement(batch, scores, 7, recipe(dtype, logprob_gap=0.099, logprob_gap_max=30.0))


def test_few_tokens_do_not_condemn_an_engine() -> None:
    batch, scores = played(own=FEW_TOKENS // 2)
    batch.sequences[2].values["rollout_logprobs"][0] -= 9.0
    assert "policy/logprob_gap_engine" not in check_agreement(batch, scores, 7, recipe())


def test_an_actor_that_is_not_finite_is_not_the_engines_fault() -> None:
    batch, scores = played()
    scores[0].logprobs[0] = math.nan
    with pytest.raises(TrainingError, match="1 of the actor's log-probs"):
        check_agreement(batch, scores, 7, recipe())


def test_stale_weights_are_named_by_engine() -> None:
    batch, scores = played()
    batch.policy_versions[3, 0] = 6
    with pytest.raises(TrainingError, match=rf"versions 6 to 7, the actor holds version 7.*stale \({URLS[3]}\)"):
        check_agreement(batch, scores, 7, recipe())


def test_without_tokens_nothing_was_measured() -> None:
    empty = Batch([], torch.empty(0), torch.empty(0).long(), torch.empty(0, 2).long())
    assert check_agreement(empty, [], 7, recipe()) == {}
