"""The actor learns alike however it packs and recomputes, its losses are right, what is not finite is skipped."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.actor_cases import (
    FIRST_OWN_ID,
    answer,
    assert_same,
    fresh_actor,
    largest_difference,
    optimizer_tensors,
    policy_loss,
    run_cases,
    sequences,
    turn_entropies,
    weights_of,
    with_old_logprobs,
    with_streams,
)
from tests.distributed.loss_cases import LOSSES, Trained, assert_equal, prepare, update_few_own_tokens, updates
from tests.distributed.ranks import run_ranks
from tests.support.models import save_random_model

UNEVEN = [120, 9, 38, 83, 77, 24, 55, 85, 68, 88]
STEPS = 5


# What every layout does; compared by the tests below.


def five_updates(folder: Path, layout: dict[str, Any], lengths: list[int], **settings: Any) -> dict[str, Any]:
    """Losses and gradient norms of five updates, and the policy after the first and after the last."""
    actor = fresh_actor(folder, layout, **settings)
    batch = torch.load(folder / "batches.pt", weights_only=False)[len(lengths)]
    measured = actor.gradient_norm(batch, policy_loss(), temperature=0.9)
    reports, first = [], None
    for _ in range(STEPS):
        reports.append(actor.update(batch, policy_loss(), temperature=0.9))
        first = first or weights_of(actor)
    assert measured == reports[0].grad_norm, "a gradient is measured as an update takes it, and moves nothing"
    assert all(report.applied for report in reports)
    return {
        "loss": [r.loss for r in reports], "grad_norm": [r.grad_norm for r in reports],
        "tokens": [r.tokens for r in reports], "clipped": [r.means["clipped"] for r in reports],
        "first": first, "last": weights_of(actor),
    }  # fmt: skip


def alone(folder: Path) -> dict[str, Any]:
    return five_updates(folder, {}, UNEVEN)


def alone_loose_packing(folder: Path) -> dict[str, Any]:
    return five_updates(folder, {}, UNEVEN, budget=4096)


def alone_recompute_full(folder: Path) -> dict[str, Any]:
    return five_updates(folder, {}, UNEVEN, recompute="full")


def alone_recompute_block(folder: Path) -> dict[str, Any]:
    return five_updates(folder, {}, UNEVEN, recompute="block", recompute_layers=3)


def alone_recompute_selective(folder: Path) -> dict[str, Any]:
    return five_updates(folder, {}, UNEVEN, recompute="selective")


def attention_calls(folder: Path) -> dict[str, list[int]]:
    """How often each layer's attention runs in one update of one microbatch."""
    calls: dict[str, list[int]] = {}
    for recompute in ("none", "selective", "block", "full"):
        actor = fresh_actor(folder, {}, recompute=recompute, recompute_layers=3)
        counts = calls[recompute] = [0] * 4
        for number, layer in enumerate(actor.model[0].module.decoder.layers):

            def count(*_: Any, number: int = number, counts: list[int] = counts) -> None:
                counts[number] += 1

            layer.self_attention.core_attention.register_forward_hook(count)
        actor.update(batches(folder)[-1:], policy_loss())
    return calls


def alone_one_sequence(folder: Path) -> dict[str, Any]:
    return five_updates(folder, {}, UNEVEN[:1])


def data_parallel_one_sequence(folder: Path) -> dict[str, Any]:
    return five_updates(folder, {"data": 2}, UNEVEN[:1])


def interleaved_one_sequence(folder: Path) -> dict[str, Any]:
    """Megatron wants two microbatches: the second has no sequence."""
    return five_updates(folder, {"pipeline": 2, "virtual_pipeline": 2}, UNEVEN[:1], overlap=True)


def batches(folder: Path) -> list[Any]:
    return torch.load(folder / "batches.pt", weights_only=False)[len(UNEVEN)]


# Positions that predict no token of the policy's own


def altered_logits(folder: Path) -> None:
    check_altered_logits(folder, {})


def altered_logits_tensor_parallel(folder: Path) -> None:
    check_altered_logits(folder, {"tensor": 2})


def check_altered_logits(folder: Path, layout: dict[str, Any]) -> None:
    plain = score_and_update(folder, layout, where=None)
    assert_same(score_and_update(folder, layout, where="foreign"), plain)
    control = score_and_update(folder, layout, where="own")
    assert all(not torch.equal(control[name], plain[name]) for name in ("scores", "turn_entropies", "report"))


def score_and_update(folder: Path, layout: dict[str, Any], where: str | None) -> dict[str, torch.Tensor]:
    """Everything the outside sees of a score and an update, the logits altered at some positions."""
    actor, batch = fresh_actor(folder, layout), batches(folder)
    generator = torch.Generator().manual_seed(1)

    seen: dict[str, torch.Tensor] = {}

    def note_tokens(_module: Any, _args: Any, inputs: dict[str, Any]) -> None:
        seen["tokens"] = inputs["input_ids"][0]

    def alter(_module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        tokens = seen["tokens"]
        predicts_own = torch.cat([tokens[1:] >= FIRST_OWN_ID, torch.zeros(1, dtype=torch.bool)])
        chosen = predicts_own if where == "own" else ~predicts_own
        hidden = inputs[0]  # [tokens, 1, hidden]; the head makes every logit of a position from it
        noise = 10 * torch.randn(hidden.shape, generator=generator)
        return (hidden + noise * chosen[:, None, None], *inputs[1:])

    if where is not None:
        model = actor.model[0].module
        model.register_forward_pre_hook(note_tokens, with_kwargs=True)
        model.output_layer.register_forward_pre_hook(alter)
    scores = actor.score(batch, temperature=0.9)
    report = actor.update(batch, policy_loss(), temperature=0.9)
    numbers = [report.loss, report.grad_norm, *report.means.values()]
    return {
        "scores": torch.cat([torch.stack([s.logprobs, s.entropies]) for s in scores], dim=1),
        "turn_entropies": turn_entropies(batch, scores),
        "report": torch.tensor(numbers, dtype=torch.float64),
        **weights_of(actor),
    }


# Updates that must not be


class Poisoned:
    """The policy loss with something wrong at the first token of the longest sequence."""

    statistics = ("approx_kl", "clipped", "ratio")

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, logprobs: torch.Tensor, entropies: torch.Tensor, streams: Any, segments: Any) -> Any:
        loss, statistics = policy_loss()(logprobs, entropies, streams, segments)
        marked = (streams.advantages == self.mark).float()
        if self.kind == "loss":
            return loss + torch.where(marked > 0, math.nan, 0.0), statistics
        # The square root's slope at 0 is infinite: a finite loss without a finite gradient.
        return loss + marked * ((logprobs - logprobs.detach()) * marked).abs().sqrt(), statistics


def poisoned(folder: Path) -> None:
    check_poisoned(folder, {})


def poisoned_data_parallel(folder: Path) -> None:
    """Only the rank that holds the sequence sees anything wrong; both must skip."""
    check_poisoned(folder, {"data": 2})


def check_poisoned(folder: Path, layout: dict[str, Any]) -> None:
    actor, batch = fresh_actor(folder, layout), batches(folder)
    good = actor.update(batch, policy_loss())
    before, state = weights_of(actor), optimizer_tensors(actor)
    for kind in ("loss", "gradient"):
        loss = Poisoned(kind)
        loss.mark = float(batch[0].streams.advantages[0])
        report = actor.update(batch, loss)
        assert not report.applied, kind
        # Each is seen by one guard alone.
        assert math.isfinite(report.loss) == (kind == "gradient")
        assert math.isfinite(report.grad_norm) == (kind == "loss")
        assert_same(weights_of(actor), before)
        assert_same(optimizer_tensors(actor), state)
    after = actor.update(batch, policy_loss())
    assert good.applied
    assert after.applied
    assert largest_difference(weights_of(actor), before) > 1e-4


# The losses


def losses(folder: Path) -> dict[str, Trained]:
    return updates(folder, {})


def losses_context_parallel(folder: Path) -> dict[str, Trained]:
    return updates(folder, {"context": 2})


def losses_data_parallel(folder: Path) -> dict[str, Trained]:
    return updates(folder, {"data": 2})


def losses_tensor_parallel(folder: Path) -> dict[str, Trained]:
    return updates(folder, {"tensor": 2})


def few_own_tokens(folder: Path) -> Trained:
    return update_few_own_tokens(folder, {}, samples=2)


def few_own_tokens_context_parallel(folder: Path) -> Trained:
    return update_few_own_tokens(folder, {"context": 2}, samples=2)


def few_own_tokens_data_parallel(folder: Path) -> Trained:
    """The second rank has no sample."""
    return update_few_own_tokens(folder, {"data": 2}, samples=1)


# The schedule


def schedules(folder: Path) -> dict[str, list[float]]:
    constant = fresh_actor(folder, {}, lr=3e-4, warmup_steps=2)
    cosine = fresh_actor(folder, {}, lr=3e-4, schedule="cosine", warmup_steps=2, total_steps=7)
    plain = fresh_actor(folder, {}, lr=3e-4)
    batch = batches(folder)[-2:]
    rates = {
        name: [actor.update(batch, policy_loss()).lr for _ in range(7)]
        for name, actor in (("constant", constant), ("cosine", cosine), ("plain", plain))
    }
    idle = fresh_actor(folder, {}, lr=3e-4, schedule="cosine", warmup_steps=2, total_steps=7)
    rates["idle"] = [idle.update(batch, policy_loss()).lr for _ in range(3)]
    idle.skip_updates(3)
    rates["idle"] += [idle.update(batch, policy_loss()).lr]
    return rates


PARALLEL_LOSSES = [losses_context_parallel, losses_data_parallel, losses_tensor_parallel]
TWO_RANKS = [
    data_parallel_one_sequence, interleaved_one_sequence, altered_logits_tensor_parallel, poisoned_data_parallel,
    few_own_tokens_context_parallel, few_own_tokens_data_parallel, *PARALLEL_LOSSES,
]  # fmt: skip
ONE_RANK = [
    alone, alone_loose_packing, alone_recompute_full, alone_recompute_block, alone_recompute_selective,
    alone_one_sequence, attention_calls, altered_logits, poisoned, schedules, losses, few_own_tokens,
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("training")
    model = save_random_model(made / "model", "qwen2")
    batch = with_old_logprobs(model, sequences(UNEVEN))
    torch.save({len(chosen): chosen for chosen in (batch, batch[:1])}, made / "batches.pt")
    return made


@pytest.fixture(scope="module")
def equations(folder: Path) -> dict[str, Trained]:
    """What the losses' equations give; and what the ranks read to train by each."""
    from transformers import AutoModelForCausalLM

    generator = torch.Generator().manual_seed(3)
    batch = []
    for sample in batches(folder):
        old_logprobs = sample.streams.old_logprobs
        noise = 0.3 * torch.randn(old_logprobs.shape, generator=generator)
        batch.append(with_streams(sample, reference_logprobs=old_logprobs + noise))
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float64)
    return prepare(folder, model, batch)


@pytest.fixture(scope="module")
def two(folder: Path, equations: dict[str, Trained]) -> list[dict[str, Any]]:
    return run_ranks(run_cases, 2, TWO_RANKS, str(folder))


@pytest.fixture(scope="module")
def one(folder: Path, equations: dict[str, Trained]) -> list[dict[str, Any]]:
    return run_ranks(run_cases, 1, ONE_RANK, str(folder))


def assert_trained_alike(actual: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-5) -> None:
    for name in ("loss", "grad_norm"):
        assert actual[name] == pytest.approx(expected[name][: len(actual[name])], rel=tolerance), name
    assert largest_difference(actual["first"], expected["first"]) <= tolerance


def test_the_cases_can_tell_right_from_wrong(one: list[dict[str, Any]]) -> None:
    """An update moves the weights by far more than the tolerance, and some tokens are clipped."""
    trained = answer(one, alone)
    assert largest_difference(trained["first"], trained["last"]) > 1e-3
    assert 0 < trained["clipped"][0] < 1
    assert len({round(loss, 4) for loss in trained["loss"]}) > 1


@pytest.mark.parametrize("case", [data_parallel_one_sequence, interleaved_one_sequence])
def test_a_microbatch_without_a_sequence_changes_nothing(
    case: Any, one: list[dict[str, Any]], two: list[dict[str, Any]]
) -> None:
    assert_trained_alike(answer(two, case), answer(one, alone_one_sequence))


def test_packing_does_not_matter(one: list[dict[str, Any]]) -> None:
    assert_trained_alike(answer(one, alone_loose_packing), answer(one, alone), tolerance=1e-6)


@pytest.mark.parametrize("case", [alone_recompute_full, alone_recompute_block, alone_recompute_selective])
def test_recomputing_activations_does_not_matter(case: Any, one: list[dict[str, Any]]) -> None:
    assert_trained_alike(answer(one, case), answer(one, alone), tolerance=1e-6)


def test_recomputation_does_what_its_name_says(one: list[dict[str, Any]]) -> None:
    assert answer(one, attention_calls) == {
        "none": [1] * 4, "selective": [2] * 4, "block": [2, 2, 2, 1], "full": [2] * 4,
    }  # fmt: skip


def test_logits_at_foreign_positions_do_not_matter(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> None:
    answer(one, altered_logits)
    answer(two, altered_logits_tensor_parallel)


def test_an_update_that_is_not_finite_is_skipped(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> None:
    answer(one, poisoned)
    answer(two, poisoned_data_parallel)


def test_learning_rate_follows_the_recipe(one: list[dict[str, Any]]) -> None:
    """Linear over the warm-up, from its first part; then constant, or a cosine at a tenth in the last step."""
    lr = answer(one, schedules)
    assert lr["plain"] == pytest.approx([3e-4] * 7)
    assert lr["constant"] == pytest.approx([1.5e-4] + [3e-4] * 6)
    falling = [0.1 + 0.9 * (1 + math.cos(math.pi * k / 5)) / 2 for k in range(6)]
    assert lr["cosine"] == pytest.approx([1.5e-4] + [3e-4 * f for f in falling])
    assert lr["cosine"][-1] == pytest.approx(3e-5)
    assert lr["idle"] == pytest.approx([*lr["cosine"][:3], lr["cosine"][-1]])


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_loss_and_gradient_equal_the_equations_in_float64(
    loss: Any, equations: dict[str, Trained], one: list[dict[str, Any]], two: list[dict[str, Any]]
) -> None:
    for results, case in ((one, losses), *((two, case) for case in PARALLEL_LOSSES)):
        for rank in range(len(results)):
            trained = answer(results, case, rank)[loss.name]
            assert_equal(trained, equations[loss.name])
            assert 0.05 < trained.means["clipped"] < 0.95


def test_turns_lie_on_both_sides_of_epos_band_and_in_it(folder: Path, one: list[dict[str, Any]]) -> None:
    means = answer(one, losses)["epo"].means
    assert 0 < means["epo_outside"] < 1
    assert means["epo_penalty"] > 0.01


@pytest.mark.parametrize("case", [few_own_tokens_context_parallel, few_own_tokens_data_parallel])
def test_ranks_without_own_tokens_take_part_in_the_means(
    case: Any, one: list[dict[str, Any]], two: list[dict[str, Any]]
) -> None:
    expected = answer(one, few_own_tokens)
    assert expected.means["epo_outside"] > 0
    for rank in (0, 1):
        assert_equal(answer(two, case, rank), expected)
