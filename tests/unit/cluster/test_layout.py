"""The suite's groups are Megatron-core's, whatever the layout."""

from itertools import product

import pytest

from megatron_empg.actor import platform
from megatron_empg.actor.config import ActorConfig
from megatron_empg.cluster.nccl_suite.layout import LayoutError, _split, parse_layout, rank_groups

ORDER = "tp-cp-ep-dp-pp"  # the default of initialize_model_parallel


@pytest.fixture(scope="module", autouse=True)
def megatron() -> None:
    platform.prepare()


def test_the_order_is_the_default_of_megatron() -> None:
    import inspect

    from megatron.core.parallel_state import initialize_model_parallel

    assert inspect.signature(initialize_model_parallel).parameters["order"].default == ORDER


@pytest.mark.parametrize(
    ("tensor", "pipeline", "context", "data"), list(product((1, 2, 4), (1, 3), (1, 2), (1, 2)))
)
def test_every_group_is_what_the_rank_generator_makes(tensor: int, pipeline: int, context: int, data: int) -> None:
    from megatron.core.parallel_state import RankGenerator

    world = tensor * pipeline * context * data
    stage = tensor * context * data
    for expert in (1, 2, stage):
        if stage % expert:
            continue
        dense = RankGenerator(tp=tensor, ep=1, dp=data, pp=pipeline, cp=context, order=ORDER)
        sparse = RankGenerator(tp=1, ep=expert, dp=stage // expert, pp=pipeline, cp=1, order=ORDER)
        expected = {
            "tensor": dense.get_ranks("tp"),
            "context": dense.get_ranks("cp"),
            "data": dense.get_ranks("dp"),
            "data and context": dense.get_ranks("dp-cp"),
            "tensor and context": dense.get_ranks("tp-cp"),
            "pipeline": dense.get_ranks("pp"),
            "tensor and pipeline": dense.get_ranks("tp-pp"),
            "expert": sparse.get_ranks("ep"),
            "expert data": sparse.get_ranks("dp"),
        }
        layout = ActorConfig(
            tensor_parallel=tensor, pipeline_parallel=pipeline, context_parallel=context, expert_parallel=expert
        )
        made = rank_groups(layout, world)
        assert made.pop("world") == [list(range(world))]
        for kind, groups in made.items():
            assert groups == expected[kind], kind
        # Nothing is left out but what is of size 1 or there already.
        there = [[list(range(world))], *made.values()]
        assert [kind for kind, groups in expected.items() if len(groups[0]) > 1 and groups not in there] == []


def test_ranks_inside_a_group_keep_megatrons_order() -> None:
    assert _split({"tensor": 2, "context": 2, "data": 2}, {"tensor", "data"}) == [[0, 1, 4, 5], [2, 3, 6, 7]]


@pytest.mark.parametrize(
    ("text", "said"),
    [("tensor=x", "tensor=x"), ("tp=2", "tp=2"), ("tensor=0", "tensor=0"), ("tensor", "'tensor'")],
)
def test_a_wrong_layout_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(LayoutError, match=said):
        parse_layout(text)


def test_a_layout_that_does_not_divide_the_ranks_is_refused() -> None:
    with pytest.raises(LayoutError, match="multiple of 6 ranks; there are 8"):
        rank_groups(parse_layout("tensor=3,pipeline=2"), 8)
    with pytest.raises(LayoutError, match="expert 3 does not divide the 4 ranks"):
        rank_groups(parse_layout("expert=3,pipeline=2"), 8)
