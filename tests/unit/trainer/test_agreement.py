"""Engines that do not compute the actor's policy are found, however few of their tokens show it, and named."""

import math

import pytest
import torch

from megatron_empg.algorithms.base import Scores
from megatron_empg.recipe import Recipe
from megatron_empg.rollout.service.batch import Batch
from megatron_empg.trainer.agreement import FEW_TOKENS, check_agreement
from megatron_empg.trainer.errors import TrainingError
from tests.support.batches import batch_of, empty_batch
from tests.support.recipes import least

OWN = 400
URLS = [f"http://engine{i}:8000" for i in range(32)]


def recipe(dtype: str = "bfloat16", *, max_lag: int = 0, **limits: float) -> Recipe:
    return least(model={"dtype": dtype}, rollout={"max_lag": max_lag}, limits={"sync_timeout": 100} | limits)


def played(noise: float = 0.01, own: int = OWN) -> tuple[Batch, Scores]:
    """One episode of each engine; the engines' log-probs differ from the actor's by `noise` on average."""
    generator = torch.Generator().manual_seed(3)
    count = len(URLS)
    ours = -torch.rand(count * own, generator=generator)
    batch = batch_of(
        [[(5, 5 + own)]] * count,
        [0.0] * count,
        [number // 2 for number in range(count)],
        length=5 + own,
        rollout_logprobs=ours + noise * torch.randn(count * own, generator=generator),
        policy_versions=torch.full((count, 2), 7),
        engines=torch.arange(count),
        engine_urls=URLS,
    )
    return batch, Scores(ours, torch.full((count * own,), 0.5))


def of_engine(batch: Batch, engine: int) -> torch.Tensor:
    """A view of the log-probs that an engine said."""
    return batch.experience.rollout_logprobs.view(len(URLS), -1)[engine]


def gaps_of(batch: Batch, scores: Scores) -> torch.Tensor:
    return (batch.experience.rollout_logprobs - scores.logprobs).abs().view(len(URLS), -1)


def test_engines_that_agree_pass_and_are_measured() -> None:
    batch, scores = played()
    metrics = check_agreement(batch, scores, 7, recipe())
    gaps = gaps_of(batch, scores)
    assert metrics["policy/logprob_gap_mean"] == pytest.approx(float(gaps.mean()), rel=1e-5)
    assert metrics["policy/logprob_gap_max"] == pytest.approx(float(gaps.max()), rel=1e-5)
    worst = float(gaps.mean(1).max())
    assert metrics["policy/logprob_gap_engine"] == pytest.approx(worst, rel=1e-5)
    assert metrics["policy/logprob_gap_episode"] == pytest.approx(worst, rel=1e-5)
    assert metrics["policy/entropy"] == 0.5


@pytest.mark.parametrize("bad", [-9999.0, math.nan, -math.inf])
def test_one_token_that_is_not_finite_stops_the_run_and_names_the_engine(bad: float) -> None:
    batch, scores = played()
    of_engine(batch, 19)[133] = bad
    with pytest.raises(TrainingError, match=rf"1 of the engines' log-probs are not finite.*{URLS[19]}:"):
        check_agreement(batch, scores, 7, recipe())


def test_one_engine_of_many_that_is_wrong_by_one_nat_stops_the_run() -> None:
    batch, scores = played()
    of_engine(batch, 4).sub_(1.0)
    assert gaps_of(batch, scores).mean() < recipe().logprob_gap_limit  # the mean alone would pass
    with pytest.raises(TrainingError, match=rf"log-probs of {URLS[4]} differ .*limits.logprob_gap\)"):
        check_agreement(batch, scores, 7, recipe())


@pytest.mark.parametrize(("dtype", "noise", "gap"), [("float32", 1e-5, 0.11), ("bfloat16", 0.01, 20.5)])
def test_a_single_token_beyond_the_tail_limit_stops_the_run(dtype: str, noise: float, gap: float) -> None:
    batch, scores = played(noise)
    check_agreement(batch, scores, 7, recipe(dtype))
    of_engine(batch, 9)[3] = scores.logprobs[9 * OWN + 3] - gap
    with pytest.raises(TrainingError, match=rf"{URLS[9]} .*limits.logprob_gap_max.*episode 9 "):
        check_agreement(batch, scores, 7, recipe(dtype, logprob_gap=0.099))
    assert check_agreement(batch, scores, 7, recipe(dtype, logprob_gap=0.099, logprob_gap_max=30.0))


def test_few_tokens_do_not_condemn_an_engine() -> None:
    batch, scores = played(own=FEW_TOKENS // 2)
    of_engine(batch, 2)[0] -= 9.0
    assert "policy/logprob_gap_engine" not in check_agreement(batch, scores, 7, recipe())


@pytest.mark.parametrize("name", ["log-probs", "entropies"])
def test_an_actor_that_is_not_finite_is_not_the_engines_fault(name: str) -> None:
    batch, scores = played()
    broken = {"log-probs": scores.logprobs, "entropies": scores.entropies}[name]
    broken[0] = math.nan
    with pytest.raises(TrainingError, match=f"1 of the actor's {name}"):
        check_agreement(batch, scores, 7, recipe())


def test_stale_weights_are_named_by_engine() -> None:
    batch, scores = played()
    batch.policy_versions[3, 0] = 6
    with pytest.raises(TrainingError, match=rf"versions 6 to 7, the actor holds version 7.*stale \({URLS[3]}\)"):
        check_agreement(batch, scores, 7, recipe())


def test_without_tokens_nothing_was_measured() -> None:
    nothing = Scores(torch.empty(0), torch.empty(0))
    assert check_agreement(empty_batch(), nothing, 7, recipe()) == {}


# With a lag


def aged(lags: list[int], *, off: float = 0.0) -> tuple[Batch, Scores]:
    """The batch of step 7 whose episodes' tokens have these lags in turn; tokens of an older policy are `off`."""
    batch, scores = played()
    by_episode = [lags[number % len(lags)] for number in range(len(URLS))]
    versions = 7 - torch.tensor(by_episode)
    batch.policy_versions = versions.unsqueeze(1).expand(-1, 2).contiguous()
    batch.token_versions = versions.repeat_interleave(OWN)
    batch.experience.rollout_logprobs[batch.token_versions < 7] -= off
    return batch, scores


def test_with_a_lag_older_tokens_may_differ_and_are_measured_by_their_age() -> None:
    batch, scores = aged([0, 1, 2, 2], off=0.5)
    metrics = check_agreement(batch, scores, 7, recipe(max_lag=3))
    assert [metrics[f"stream/lag_share_{lag}"] for lag in range(4)] == [0.25, 0.25, 0.5, 0.0]
    assert (metrics["stream/lag_mean"], metrics["stream/lag_max"]) == (1.25, 2.0)
    assert metrics["policy/logprob_gap_lag_0"] == pytest.approx(metrics["policy/logprob_gap_mean"])
    assert metrics["policy/logprob_gap_lag_0"] < 0.02
    assert metrics["policy/logprob_gap_lag_2"] > 0.4
    assert "policy/logprob_gap_lag_3" not in metrics, "of that age there is none"
    assert metrics["policy/logprob_gap_checked"] == 0.25


def test_with_a_lag_an_engine_that_is_wrong_is_found_by_its_newest_tokens() -> None:
    batch, scores = aged([0, 1], off=0.5)
    of_engine(batch, 4).sub_(1.0)
    with pytest.raises(TrainingError, match=rf"worst {URLS[4]} with 1.00.*limits.logprob_gap\)"):
        check_agreement(batch, scores, 7, recipe(max_lag=1))


def test_with_a_lag_only_the_new_tokens_of_an_episode_are_judged() -> None:
    """The weights came in the middle of each."""
    batch, scores = played()
    newer = torch.arange(OWN).repeat(len(URLS)) >= OWN // 2
    batch.policy_versions[:, 0] = 6
    batch.token_versions = torch.where(newer, 7, 6)
    batch.experience.rollout_logprobs[~newer] -= 0.9
    metrics = check_agreement(batch, scores, 7, recipe(max_lag=1))
    assert metrics["policy/logprob_gap_mean"] == pytest.approx(float(gaps_of(batch, scores)[:, OWN // 2 :].mean()))
    assert metrics["policy/logprob_gap_checked"] == 0.5


def test_where_no_token_is_new_the_guard_says_that_it_judged_nothing() -> None:
    batch, scores = aged([1], off=0.9)
    metrics = check_agreement(batch, scores, 7, recipe(max_lag=1))
    assert metrics["policy/logprob_gap_checked"] == 0.0
    assert not {"policy/logprob_gap_mean", "policy/logprob_gap_max"} & set(metrics)
    assert metrics["policy/entropy"] == 0.5


def test_with_a_lag_an_older_token_that_is_not_finite_stops_the_run_too() -> None:
    batch, scores = aged([0, 1])
    of_engine(batch, 5)[3] = -9999.0
    with pytest.raises(TrainingError, match=rf"not finite.*{URLS[5]}:"):
        check_agreement(batch, scores, 7, recipe(max_lag=1))


@pytest.mark.parametrize("version", [4, 8])
def test_versions_beyond_the_lag_or_ahead_of_the_actor_are_refused(version: int) -> None:
    batch, scores = aged([0, 1, 2])
    batch.policy_versions[3, int(version > 7)] = version
    with pytest.raises(TrainingError, match=r"the actor holds version 7 \(rollout.max_lag allows 5 and later\)"):
        check_agreement(batch, scores, 7, recipe(max_lag=2))


def test_an_engine_that_says_no_version_is_refused_at_the_first_steps_too() -> None:
    batch, scores = played()
    batch.policy_versions[:] = 0
    batch.policy_versions[3, 0] = -1
    with pytest.raises(TrainingError, match="versions -1 to 0"):
        check_agreement(batch, scores, 0, recipe(max_lag=4))


def test_an_engine_whose_tokens_are_all_old_is_held_to_a_limit_too() -> None:
    """The others' tokens are new, so that their gaps are checked: those say nothing of it."""
    batch, scores = aged([0])
    batch.token_versions.view(len(URLS), -1)[11] = 6
    of_engine(batch, 11).sub_(0.9)
    check_agreement(batch, scores, 7, recipe(max_lag=1))
    of_engine(batch, 11).sub_(0.2)
    with pytest.raises(TrainingError, match=rf"log-probs of {URLS[11]} differ .* {OWN} tokens of older versions"):
        check_agreement(batch, scores, 7, recipe(max_lag=1))


@pytest.mark.parametrize("version", [-1, 5, 8])
@pytest.mark.parametrize("max_lag", [0, 1])
def test_a_token_of_another_version_is_refused_whatever_its_episode_says(version: int, max_lag: int) -> None:
    """-1: no span of the engine covers it."""
    batch, scores = played()
    batch.token_versions[12 * OWN + 3] = version
    with pytest.raises(TrainingError, match=rf"1 tokens are of policy versions .*\({URLS[12]}\)"):
        check_agreement(batch, scores, 7, recipe(max_lag=max_lag))
