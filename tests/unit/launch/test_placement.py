"""Which node does what with which GPUs, as a table."""

import re

import pytest

from megatron_empg.launch.placement import JobShape, NodeShares, PlacementError, place, share_out
from megatron_empg.launch.run_plan import RunPlan


def plan(ranks: int, engines: int, size: int = 1, model_parallel: int = 1) -> RunPlan:
    return RunPlan(
        kind="train" if engines else "sft",
        run_folder="runs/a",
        steps=3,
        checkpoint=0,
        finished=False,
        environment="deep_search",
        trainer_ranks=ranks,
        engines=engines,
        engine_size=size,
        engine_arguments=(),
        model_parallel=model_parallel,
        layout=f"tensor {model_parallel} x pipeline 1 x context 1 x data {ranks // model_parallel}",
        sizes_above_one=("actor.tensor_parallel",) if model_parallel > 1 else (),
    )


def shares(
    trainer_nodes: int, ranks: int, rollout_nodes: int, engines: int, *, shared: bool = False
) -> NodeShares:
    return NodeShares(trainer_nodes, ranks, rollout_nodes, engines, shared)


@pytest.mark.parametrize(
    ("ranks", "engines", "size", "shape", "wanted"),
    [
        # Roles as the user gives them.
        (32, 8, 4, JobShape(8, 8, 4, 4), shares(4, 8, 4, 2)),
        (32, 8, 4, JobShape(9, 8, 4, 4), shares(4, 8, 4, 2)),
        (32, 8, 4, JobShape(8, 8, 4, 4, engines_per_node=1), shares(4, 8, 4, 1)),
        # By the recipe: trainer nodes are filled, and as many roll out as its engines need.
        (32, 8, 4, JobShape(8, 8), shares(4, 8, 4, 2)),
        (32, 8, 4, JobShape(9, 8), shares(4, 8, 4, 2)),
        (32, 8, 4, JobShape(6, 8), shares(4, 8, 2, 2)),
        (8, 8, 1, JobShape(2, 8), shares(1, 8, 1, 8)),
        (8, 8, 1, JobShape(5, 8), shares(1, 8, 1, 8)),
        (8, 2, 1, JobShape(2, 8), shares(1, 8, 1, 8)),
        (4, 4, 1, JobShape(2, 8), shares(1, 4, 1, 8)),
        # Ranks that fill no number of nodes are the same on each.
        (12, 4, 1, JobShape(3, 8), shares(2, 6, 1, 8)),
        (10, 4, 1, JobShape(3, 8), shares(2, 5, 1, 8)),
        # Only one of the roles is given.
        (8, 16, 1, JobShape(4, 8, rollout_nodes=1), shares(1, 8, 1, 8)),
        (8, 16, 1, JobShape(4, 8, trainer_nodes=1), shares(1, 8, 2, 8)),
        # No node is left: engines share the trainer's.
        (4, 8, 1, JobShape(1, 8), shares(1, 4, 1, 4, shared=True)),
        (4, 2, 1, JobShape(1, 8), shares(1, 4, 1, 2, shared=True)),
        (4, 8, 2, JobShape(1, 8), shares(1, 4, 1, 2, shared=True)),
        (2, 1, 4, JobShape(1, 8), shares(1, 2, 1, 1, shared=True)),
        (4, 8, 1, JobShape(1, 8, trainer_nodes=1), shares(1, 4, 1, 4, shared=True)),
        (4, 8, 1, JobShape(1, 8, engines_per_node=3), shares(1, 4, 1, 3, shared=True)),
        (12, 4, 1, JobShape(2, 8), shares(2, 6, 2, 2, shared=True)),
        # Without GPUs the numbers are processes, and given engines are not bounded by them.
        (2, 1, 1, JobShape(3, 1, 2, 1, engines_per_node=2, cpu=True), shares(2, 1, 1, 2)),
        (2, 4, 1, JobShape(1, 8, cpu=True), shares(1, 2, 1, 4, shared=True)),
        (2, 4, 1, JobShape(1, 2, engines_per_node=2, cpu=True), shares(1, 2, 1, 2, shared=True)),
        # A supervised warm-up has no engines.
        (8, 0, 1, JobShape(1, 8), shares(1, 8, 0, 0)),
        (16, 0, 1, JobShape(3, 8), shares(2, 8, 0, 0)),
    ],
)
def test_nodes_are_shared_out(ranks: int, engines: int, size: int, shape: JobShape, wanted: NodeShares) -> None:
    found = share_out(plan(ranks, engines, size), shape)
    assert found == wanted
    assert found.nodes <= shape.nodes
    if engines:  # a plan that says so already is shared out in the same way
        assert share_out(plan(ranks, found.engines, size), shape) == found


@pytest.mark.parametrize(
    ("ranks", "engines", "size", "shape", "said"),
    [
        (2, 1, 1, JobShape(3, 1, 1, 1), "EMPG_TRAINER_NODES is 1 .*layout takes 2 .*set EMPG_TRAINER_NODES=2"),
        (4, 1, 1, JobShape(3, 1, 2, 1), r"layout takes 4 \(tensor 2 .*set actor.data_parallel=1"),
        (2, 1, 1, JobShape(3, 1, 2, 2), r"--nodes is 3; EMPG_TRAINER_NODES \+ EMPG_ROLLOUT_NODES are 4"),
        (8, 8, 1, JobShape(2, 8, 1, 1, engines_per_node=9), "a rollout node's 8 GPUs do not hold 9 such engines"),
        (
            8,
            1,
            16,
            JobShape(2, 8, 1, 1),
            "engines.tensor_parallel is 16, EMPG_ENGINES_PER_NODE not given: .* hold 1",
        ),
        (32, 8, 4, JobShape(2, 8), "--nodes is 2; the trainer takes 4 of 8 GPUs .*sbatch --nodes=5"),
        (8, 8, 1, JobShape(1, 8), r"leave 0 of 8 GPUs, where 1 engines .*sbatch --nodes=2"),
        (6, 8, 4, JobShape(1, 8), r"leave 2 of 8 GPUs, where 1 engines of 4 \(engines.tensor_parallel\)"),
        (4, 8, 1, JobShape(1, 8, engines_per_node=5), "leave 4 of 8 GPUs, where 5 engines of 1"),
        (16, 0, 1, JobShape(1, 8), "--nodes is 1; the trainer takes 2 of 8 GPUs"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_fix(
    ranks: int, engines: int, size: int, shape: JobShape, said: str
) -> None:
    with pytest.raises(PlacementError) as refused:
        share_out(plan(ranks, engines, size, model_parallel=2), shape)
    assert re.search(said, str(refused.value)), str(refused.value)


@pytest.mark.parametrize(
    ("ranks", "engines", "size", "model_parallel", "shape", "fix"),
    [
        (8, 4, 1, 2, JobShape(1, 8), "(sbatch --nodes=2), or lower actor.tensor_parallel. `empg"),
        (
            8,
            4,
            1,
            1,
            JobShape(1, 8),
            "(sbatch --nodes=2). `empg plan RECIPE --gpus 8 engines.count=N` names layouts",
        ),
        (6, 4, 4, 1, JobShape(1, 8), "(sbatch --nodes=2), or lower engines.tensor_parallel. `empg"),
        (
            4,
            8,
            1,
            1,
            JobShape(1, 8, engines_per_node=5),
            "(sbatch --nodes=2), or lower EMPG_ENGINES_PER_NODE. `empg",
        ),
        (16, 4, 1, 2, JobShape(2, 8), "or lower actor.tensor_parallel. `empg plan RECIPE --gpus 16 engines"),
    ],
)
def test_where_engines_have_no_room_only_what_is_above_1_is_to_be_lowered(
    ranks: int, engines: int, size: int, model_parallel: int, shape: JobShape, fix: str
) -> None:
    with pytest.raises(PlacementError) as refused:
        share_out(plan(ranks, engines, size, model_parallel), shape)
    assert fix in str(refused.value)


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(PlacementError) as refused:
        share_out(plan(2, 1, 4), JobShape(3, 1, 1, 4))
    assert len(str(refused.value).splitlines()) == 4


def test_the_first_nodes_train_and_the_next_roll_out() -> None:
    found = place(shares(2, 8, 1, 8), ["n1", "n3", "n4", "n9"])
    assert found is not None
    assert (found.trainers, found.rollouts, found.nodes) == (("n1", "n3"), ("n4",), ("n1", "n3", "n4"))
    assert found.rollout_words == "n4"
    assert place(shares(2, 8, 1, 8), ["n1", "n3"]) is None


def test_a_shared_node_has_both_roles_and_engines_begin_after_the_trainers_gpus() -> None:
    found = place(shares(1, 4, 1, 4, shared=True), ["n7", "n8"])
    assert found is not None
    assert (found.trainers, found.rollouts, found.nodes) == (("n7",), ("n7",), ("n7",))
    assert found.shares.first_engine_gpu == 4
    assert found.rollout_words == "n7 beside it, from GPU 4 on"
