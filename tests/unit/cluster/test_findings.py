"""From measurements to names: slow nodes, slow links, late ranks, wrong bytes."""

import pytest

from megatron_empg.cluster.nccl_suite.faults import WrongBytes, blame
from megatron_empg.cluster.nccl_suite.pairs import by_gpu, judge_pairs, schedule, tournament
from megatron_empg.cluster.nccl_suite.slow_links import Matrix, find_late, find_slow
from megatron_empg.cluster.nccl_suite.transfer import overlaps

BELOW = 0.7


def matrix(size: int, slow: dict[tuple[int | None, int | None], float]) -> Matrix:
    """Pairs at about 10 GB/s; ``slow`` gives others, None being any."""
    pairs = {(a, b): 10.0 + 0.1 * ((a * 7 + b) % 5) for a in range(size) for b in range(size) if a != b}
    for (a, b), value in slow.items():
        for pair in pairs:
            if a in (None, pair[0]) and b in (None, pair[1]):
                pairs[pair] = value
    return pairs


@pytest.mark.parametrize("size", [3, 4, 8, 16])
@pytest.mark.parametrize("bad", [0, 2])
def test_a_slow_member_is_named_with_its_direction(size: int, bad: int) -> None:
    for direction, slow in (
        ("sends slowly", {(bad, None): 2.0}),
        ("receives slowly", {(None, bad): 2.0}),
        ("sends slowly and receives slowly", {(bad, None): 2.0, (None, bad): 3.0}),
    ):
        (found,) = find_slow(matrix(size, slow), BELOW)
        assert (found.members, found.direction) == ((bad,), direction)


@pytest.mark.parametrize("size", [3, 8])
def test_a_single_slow_link_is_not_blamed_on_its_ends(size: int) -> None:
    (found,) = find_slow(matrix(size, {(1, 2): 2.0}), BELOW)
    assert found.members == (1, 2)
    both = find_slow(matrix(size, {(1, 2): 2.0, (2, 1): 2.0}), BELOW)
    assert sorted(f.members for f in both) == [(1, 2), (2, 1)]


def test_two_slow_members_and_a_slow_link_are_all_named() -> None:
    slow: dict[tuple[int | None, int | None], float] = {(0, None): 2.0, (None, 5): 1.0, (3, 6): 4.0}
    found = find_slow(matrix(8, slow), BELOW)
    assert sorted(f.members for f in found) == [(0,), (3, 6), (5,)]


def test_even_pairs_and_too_few_pairs_name_nobody() -> None:
    assert find_slow(matrix(8, {}), BELOW) == []
    assert find_slow(matrix(2, {}), BELOW) == []


def test_between_nodes_a_whole_node_is_told_from_one_of_its_gpus() -> None:
    nodes = [(f"gpu-{rank // 2}", rank % 2) for rank in range(8)]
    fast = {(a, b): 10.0 for a in range(8) for b in range(8) if a != b}
    whole = {pair: 1.0 if 4 in pair or 5 in pair else value for pair, value in fast.items()}
    whole[4, 5] = whole[5, 4] = 10.0
    (fault,) = judge_pairs(whole, nodes, BELOW)
    assert fault.ranks == (4, 5)
    assert "node gpu-2: sends slowly and receives slowly on every link" in fault.what
    assert "only" not in fault.what
    rail = {pair: 1.0 if 5 in pair and 4 not in pair else value for pair, value in fast.items()}
    (fault,) = judge_pairs(rail, nodes, BELOW)
    assert fault.ranks == (5,)
    assert "node gpu-2" in fault.what
    assert fault.what.endswith("GPU 1 only")


def test_inside_a_node_a_slow_gpu_and_a_slow_node_are_named() -> None:
    one = [("a", local) for local in range(4)]
    (fault,) = judge_pairs(matrix(4, {(3, None): 1.0}), one, BELOW)
    assert fault.ranks == (3,)
    assert "rank 3 (a, GPU 3)" in fault.what
    three = [(node, local) for node in "abc" for local in range(2)]
    values = {(a, b): 10.0 for a in range(6) for b in range(6) if a != b}
    values[2, 3] = values[3, 2] = 1.0
    (fault,) = judge_pairs(values, three, BELOW)
    assert fault.ranks == (2, 3)
    assert "node b: its GPUs exchange 1 GB/s" in fault.what


def test_a_floor_finds_what_comparison_cannot() -> None:
    faults = judge_pairs({(0, 1): 38.0, (1, 0): 50.0}, [("a", 0), ("b", 0)], BELOW, least=40.0)
    assert [fault.ranks for fault in faults] == [(0, 1)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8])
def test_a_tournament_pairs_everybody_once_and_nobody_twice_a_round(size: int) -> None:
    rounds = tournament(list(range(size)))
    met = [frozenset(pair) for pairs in rounds for pair in pairs]
    assert sorted(map(sorted, met)) == [[a, b] for a in range(size) for b in range(a + 1, size)]
    for pairs in rounds:
        playing = [rank for pair in pairs for rank in pair]
        assert len(playing) == len(set(playing))


def test_the_schedule_has_pairs_inside_nodes_and_along_rails_only() -> None:
    nodes = [(f"n{rank // 4}", rank % 4) for rank in range(12)]
    pairs = [frozenset(pair) for pairs in schedule(nodes, at_once=True) for pair in pairs]
    assert len(pairs) == len(set(pairs)) == 3 * 6 + 4 * 3
    for a, b in pairs:
        assert nodes[a][0] == nodes[b][0] or nodes[a][1] == nodes[b][1]
    alone = schedule(nodes, at_once=False)
    assert {frozenset(pair) for (pair,) in alone} == set(pairs)


def test_each_gpus_median_is_of_its_own_links() -> None:
    rows = by_gpu(matrix(3, {(1, None): 2.0}), 3)
    assert rows[1] == {"rank": 1, "sends": 2.0, "receives": pytest.approx(10.05)}


def test_late_ranks_by_median_over_rounds() -> None:
    steady, once = [0.0, 0.001, 0.002], [0.0, 0.9, 0.001]
    assert find_late([steady, once, [0.5, 0.4, 0.6], steady], 0.1) == [2]
    assert find_late([steady, once], 0.1) == []
    assert find_late([[0.5, 0.5]], 0.1) == []


def wrong(rank: int, source: int | None, offset: int = 8) -> WrongBytes:
    return WrongBytes("world [0, 1, 2, 3]", "all_gather", "float16", 64, rank, source, offset, "1.0", "2.0")


def test_wrong_bytes_are_blamed_on_the_sender_or_on_the_receiver() -> None:
    assert blame([]) == []
    (sender,) = blame([wrong(0, None), wrong(0, 2), wrong(1, 2), wrong(2, 2)])
    assert sender.ranks == (2,)
    for part in ("rank 2 sends", "all_gather", "float16", "64 bytes", "world [0, 1, 2, 3]", "byte 8 from rank 2"):
        assert part in sender.what
    (receiver,) = blame([wrong(3, 0), wrong(3, 1), wrong(3, None)])
    assert receiver.ranks == (3,)
    assert "rank 3 receives" in receiver.what
    (several,) = blame([wrong(0, 1), wrong(1, 2)])
    assert several.ranks == (1, 2)


@pytest.mark.parametrize(("total", "trainers", "engines"), [(10, 2, 3), (7, 3, 2), (64, 4, 4), (3, 5, 2)])
def test_pieces_cover_every_element_once_for_every_engine(total: int, trainers: int, engines: int) -> None:
    owner = [-1] * total
    for trainer, engine, start, stop in overlaps(total, trainers, engines):
        for at in range(start, stop):
            assert owner[at] == -1
            owner[at] = engine
            assert total * trainer // trainers <= at < total * (trainer + 1) // trainers
            assert total * engine // engines <= at < total * (engine + 1) // engines
    assert -1 not in owner
