"""Episodes are not looked through again and again while a batch is played."""

import gc
import weakref

from megatron_empg.rollout.service.garbage import free_cycles, no_full_collections


def full_collections() -> int:
    return int(gc.get_stats()[2]["collections"])


def long_lived(count: int) -> list[list[int]]:
    """Containers that live on, of which there are ever more: what makes the collector look at all."""
    return [[number] for number in range(count)]


def test_only_young_objects_are_collected_until_it_is_left() -> None:
    before = gc.get_threshold()
    with no_full_collections():
        begun = full_collections()
        kept = long_lived(400_000)
        assert full_collections() == begun
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
    begun = full_collections()
    kept += long_lived(400_000)
    assert full_collections() > begun, "as it is by default"


class Circle:
    """Refers to itself."""

    def __init__(self) -> None:
        self.itself = self


def test_while_episodes_play_young_cycles_are_freed_without_a_full_collection() -> None:
    with no_full_collections():
        young = weakref.ref(Circle())
        begun = full_collections()
        free_cycles(at_rest=False)
        assert young() is None
        assert full_collections() == begun


def test_at_rest_all_cycles_are_freed() -> None:
    with no_full_collections():
        circle = Circle()
        gc.collect()  # it is old now
        old = weakref.ref(circle)
        del circle
        free_cycles(at_rest=False)
        assert old() is not None
        free_cycles(at_rest=True)
        assert old() is None
