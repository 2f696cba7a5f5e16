"""A key of the actor is written once: who chooses it, and whether it may change, follow from where it stands."""

import pytest

from megatron_empg.actor.config import ActorConfig
from megatron_empg.common.section import Mark, marked
from megatron_empg.planner.search import KEYS, changed_keys
from megatron_empg.recipe.identity import may_change


def test_the_planner_chooses_the_keys_that_say_so() -> None:
    assert marked(ActorConfig, Mark.PLANNED) == KEYS
    assert "tensor_parallel" in KEYS
    assert not {"context_exchange", "overlap", "optimizer"} & set(KEYS)
    plain = ActorConfig()
    other = ActorConfig(recompute="block", recompute_layers=3, overlap=True)
    assert changed_keys(plain, other) == {"actor.recompute": "block", "actor.recompute_layers": 3}


def test_a_run_goes_on_with_another_value_where_the_key_says_so() -> None:
    kept = [name for name in ActorConfig.model_fields if not may_change(f"actor.{name}") and name != "optimizer"]
    assert kept == ["distributed_optimizer"], "what its checkpoints hold hangs on it"
    assert may_change("actor.optimizer.lr")


def test_checkpoints_record_a_layout_by_the_names_of_before() -> None:
    """A manifest of an earlier release is compared with these."""
    assert ActorConfig(tensor_parallel=2, sequence_parallel=True).sizes == {
        "tensor": 2, "pipeline": 1, "data": 1, "sequence_parallel": True, "context": 1, "virtual_pipeline": 1,
        "expert": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("recompute", "layers", "said"),
    [("none", 0, "none"), ("selective", 0, "selective"), ("block", 3, "block 3"), ("full", 8, "full")],
)
def test_layers_that_are_computed_again(recompute: str, layers: int, said: str) -> None:
    actor = ActorConfig.model_validate({"recompute": recompute, "recompute_layers": 3})
    assert actor.recomputed_layers(8) == layers
    assert actor.recomputation == said
    assert actor.recomputed_layers(2) == min(layers, 2)
