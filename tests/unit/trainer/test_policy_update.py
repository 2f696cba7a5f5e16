"""What is said of a batch's optimizer steps: those that were applied, weighted by their tokens."""

import math

from megatron_empg.actor.actor import UpdateReport
from megatron_empg.trainer.policy_update import update_metrics


def report(value: float, tokens: int, *, norm: float = 1.0, applied: bool = True) -> UpdateReport:
    names = ("approx_kl", "clipped", "ratio", "entropy")
    return UpdateReport(value, norm, value / 10, tokens, applied, dict.fromkeys(names, value))


def test_means_are_weighted_by_tokens_and_norms_by_steps() -> None:
    metrics = update_metrics([report(1.0, 100, norm=2.0), report(3.0, 300, norm=6.0)])
    for name in ("loss", "approx_kl", "clip_fraction", "ratio", "update_entropy"):
        assert metrics[f"policy/{name}"] == 2.5, name
    assert (metrics["policy/grad_norm"], metrics["policy/grad_norm_max"]) == (4.0, 6.0)
    assert (metrics["policy/lr"], metrics["skipped_updates"]) == (0.3, 0.0)
    assert "policy/kl_to_reference" not in metrics


def test_a_step_that_was_skipped_is_counted_and_changes_no_mean() -> None:
    skipped = report(math.nan, 900, norm=math.inf, applied=False)
    metrics = update_metrics([report(1.0, 100), skipped])
    assert metrics["skipped_updates"] == 1.0
    assert metrics["policy/loss"] == metrics["policy/grad_norm_max"] == 1.0
    alone = update_metrics([skipped])
    assert {"policy/loss", "policy/grad_norm", "policy/entropy"}.isdisjoint(alone)
    assert alone["skipped_updates"] == 1.0


def test_the_kl_of_the_loss_is_reported_where_it_is_in_the_loss() -> None:
    made = report(1.0, 10)
    made.means["kl_to_reference"] = 0.25
    assert update_metrics([made])["policy/kl_to_reference"] == 0.25
