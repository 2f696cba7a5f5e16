"""The tasks of a stream: each once before the split is over, and the same for the same number."""

import random
from typing import Any

from megatron_empg.environments.base import Task
from megatron_empg.rollout.service.question_stream import CHUNK, QuestionStream


class Balanced:
    """Draws as a source does that balances kinds: rare ones come again while others are left."""

    def __init__(self, common: int, rare: int) -> None:
        asked: Any = [{"role": "user", "content": "?"}]
        self.common = [Task(f"common {i}", asked, {}, kind="common") for i in range(common)]
        self.rare = [Task(f"rare {i}", asked, {}, kind="rare") for i in range(rare)]

    def tasks(self, split: str) -> list[Task]:
        return [*self.common, *self.rare]

    def sample(self, split: str, count: int, seed: int) -> list[Task]:
        rng = random.Random(seed)
        kinds = [kind for kind in (self.common, self.rare) if kind]
        return [rng.choice(rng.choice(kinds)) for _ in range(count)]


def drawn(source: Balanced, count: int, seed: int = 1, **begun: Any) -> list[str]:
    stream = QuestionStream(source, seed, **begun)  # type: ignore[arg-type]
    return [stream.task(number).id for number in range(begun.get("first", 0), count)]


def test_no_task_comes_twice_before_the_split_is_over() -> None:
    source = Balanced(3 * CHUNK, 5)
    size = 3 * CHUNK + 5
    ids = drawn(source, 2 * size)
    assert len(set(ids[:size])) == size
    assert sorted(ids[size:]) == sorted(ids[:size])
    assert ids[size:] != ids[:size], "the second pass has another order"


def test_a_number_has_the_same_task_wherever_a_stream_begins() -> None:
    source = Balanced(100, 5)
    ids = drawn(source, 150)
    assert drawn(source, 150, first=60) == ids[60:]
    again = QuestionStream(source, 1, first=60, again=[3, 41])  # type: ignore[arg-type]
    assert [again.task(number).id for number in (3, 41, 60)] == [ids[3], ids[41], ids[60]]
    assert drawn(source, 150, seed=2) != ids


def test_tasks_come_by_their_own_number_also_out_of_order() -> None:
    source = Balanced(100, 5)
    ids = drawn(source, 10)
    stream = QuestionStream(source, 1)  # type: ignore[arg-type]
    assert [stream.task(number).id for number in (4, 0, 9, 2)] == [ids[4], ids[0], ids[9], ids[2]]
