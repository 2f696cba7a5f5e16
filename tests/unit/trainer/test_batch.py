"""A batch survives its way from driver to trainer."""

import pytest
import torch

from megatron_empg.actor.packing import Sequence
from megatron_empg.trainer.batch import Batch
from megatron_empg.trainer.evaluation import Evaluation


def some_batch() -> Batch:
    sequences = [
        Sequence(torch.arange(9), torch.tensor([[2, 4], [6, 9]]), {"rollout_logprobs": torch.randn(5)}),
        Sequence(torch.tensor([151_000, 7, 8]), torch.tensor([[1, 2]]), {"rollout_logprobs": torch.randn(1)}),
        Sequence(torch.tensor([1, 2]), torch.empty(0, 2).long(), {"rollout_logprobs": torch.empty(0)}),
    ]
    return Batch(
        sequences,
        rewards=torch.tensor([1.0, 0.0, 0.25]),
        groups=torch.tensor([0, 0, 3]),
        policy_versions=torch.tensor([[4, 4], [4, 5], [5, 5]]),
        episodes=[{"question": 'Straße "x"\u2028 \U0001f40d', "turns": []}, {}, {"turns": [{"text": "\x00"}]}],
        metrics={"train/reward": 0.1 + 0.2, "train/groups_kept": 2},
    )


def empty_batch() -> Batch:
    return Batch([], torch.empty(0), torch.empty(0).long(), torch.empty(0, 2).long(), [], {"train/groups_kept": 0})


@pytest.mark.parametrize("make", [some_batch, empty_batch])
def test_bytes_and_back(make) -> None:
    torch.manual_seed(0)
    batch = make()
    back = Batch.from_bytes(batch.to_bytes())
    for name in ("rewards", "groups", "policy_versions"):
        assert torch.equal(getattr(back, name), getattr(batch, name)), name
        assert getattr(back, name).dtype == getattr(batch, name).dtype, name
    assert (back.episodes, back.metrics) == (batch.episodes, batch.metrics)
    assert len(back.sequences) == len(batch.sequences)
    for after, before in zip(back.sequences, batch.sequences, strict=True):
        assert torch.equal(after.tokens, before.tokens)
        assert torch.equal(after.steps, before.steps)
        assert torch.equal(after.values["rollout_logprobs"], before.values["rollout_logprobs"])


@pytest.mark.parametrize("broken", [b"", b"no batch at all", some_batch().to_bytes()[:-9]])
def test_anything_else_is_refused(broken: bytes) -> None:
    with pytest.raises(ValueError, match="batch"):
        Batch.from_bytes(broken)


def test_metrics_of_an_evaluation() -> None:
    evaluation = Evaluation("test_id", True, 0.5, 98, 2, 3.1, {"two hops": 0.25})
    assert evaluation.metrics() == {
        "eval/test_id/greedy": 0.5, "eval/test_id/greedy_questions": 98, "eval/test_id/greedy_errors": 2,
        "eval/test_id/greedy/two hops": 0.25,
    }  # fmt: skip
    assert Evaluation(**evaluation.to_json()) == evaluation
