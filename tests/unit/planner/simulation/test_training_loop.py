"""The simulated loop: closed forms at lag 0 and without a bound, and what holds for any setting."""

import random
from dataclasses import replace
from typing import Any

import pytest

from megatron_empg.planner.simulation.engine import EngineRates
from megatron_empg.planner.simulation.loop import SimulatedStream, simulate, steps_to_count
from megatron_empg.planner.simulation.setting import SimulationSetting
from megatron_empg.planner.simulation.workload import AssumedWorkload, EpisodePlan, PlannedTurn, RecordedWorkload

TURN = PlannedTurn(100, 50, 0.5)


class Same:
    """Episodes that are all alike."""

    def __init__(self, *turns: PlannedTurn, anew: bool = False) -> None:
        self.plan = EpisodePlan(turns, anew)

    def draw_group(self, numbers: random.Random, size: int) -> list[EpisodePlan]:
        return [self.plan] * size


def setting(**changes: Any) -> SimulationSetting:
    """One engine and one group of two episodes, each of which decodes as if it were alone."""
    plain = SimulationSetting(
        workload=Same(TURN, TURN),
        rates=EngineRates(fixed_seconds=0.01),
        engines=1,
        slots=64,
        cache_tokens=float("inf"),
        concurrency=64,
        groups=1,
        group_size=2,
        train_token_seconds=0.001,
        train_fixed_seconds=0.2,
        sync_seconds=0.3,
    )
    return replace(plain, **changes)


def test_a_step_of_lag_0_is_its_rollout_then_its_update_then_its_sync() -> None:
    outcome = simulate(setting(), steps=5)
    rollout, train, sync = 2 * (50 * 0.01 + 0.5), 0.2 + 600 * 0.001, 0.3
    assert outcome.waited_seconds == pytest.approx(rollout)
    assert outcome.worked_seconds == pytest.approx(train + sync)
    assert outcome.step_seconds == pytest.approx(rollout + train + sync)
    assert outcome.trainer_idle == pytest.approx(rollout / (rollout + train + sync))
    assert outcome.engines_idle == pytest.approx(1 - 1.0 / (rollout + train + sync))
    assert outcome.staleness == {0: 1.0}
    assert outcome.token_staleness == {0: 1.0}
    assert outcome.tail == pytest.approx(1.0)


def test_reading_service_and_blocks_are_counted() -> None:
    rates = EngineRates(fixed_seconds=0.01, read_seconds=0.001, request_seconds=0.05, block_tokens=32)
    outcome = simulate(setting(rates=rates, group_size=1, service_seconds=0.25), steps=5)
    # The second turn reads its own 100 tokens, and of the 150 before it the 22 that fill no block.
    reading = 0.1 + 0.122 + 2 * 0.05
    assert outcome.waited_seconds == pytest.approx(2 * (0.5 + 0.5 + 0.25) + reading)


def test_turns_that_read_anew_have_no_context() -> None:
    rates = EngineRates(fixed_seconds=0.01, context_seconds=0.0001)
    kept, anew = (
        simulate(setting(workload=Same(*[TURN] * 4, anew=anew), rates=rates), steps=3) for anew in (False, True)
    )
    assert anew.waited_seconds < kept.waited_seconds


def test_the_service_does_one_turn_at_a_time() -> None:
    """32 episodes of one turn: the last is served after 32 turns of work."""
    outcome = simulate(
        setting(workload=Same(PlannedTurn(1, 1, 0.0)), groups=4, group_size=8, service_seconds=0.1), steps=3
    )
    assert outcome.waited_seconds == pytest.approx(32 * 0.1 + 0.01)


def test_a_lag_without_a_bound_takes_the_longer_of_rollout_and_update() -> None:
    """Engines that are never full and a trainer; then engines that are always, and hardly anything to train."""
    outcome = simulate(setting(max_lag=20), steps=200)
    assert outcome.step_seconds == pytest.approx(0.2 + 600 * 0.001 + 0.3)
    assert outcome.trainer_idle == pytest.approx(0.0, abs=1e-9)
    busy = setting(slots=1, max_lag=20, workload=Same(PlannedTurn(1, 100, 0.0)), train_token_seconds=0.0)
    slow = simulate(replace(busy, train_fixed_seconds=0.1, sync_seconds=0.0), steps=200)
    assert slow.step_seconds == pytest.approx(2 * 100 * 0.01, rel=0.01)
    assert slow.engines_idle == pytest.approx(0.0, abs=1e-6)


def test_lag_1_overlaps_rollout_and_update() -> None:
    """Groups that entered as the last weights came are trained next: two periods hold a rollout and an update."""
    both = setting(workload=Same(*[TURN] * 10), rates=EngineRates(fixed_seconds=0.01), sync_seconds=0.0)
    rollout, train = 10 * 1.0, 0.2 + 3000 * 0.001
    assert simulate(both, steps=20).step_seconds == pytest.approx(rollout + train)
    lagged = simulate(replace(both, max_lag=1), steps=24)  # an even number counts
    assert lagged.step_seconds == pytest.approx((rollout + train) / 2)
    assert lagged.staleness == {1: 1.0}


def test_dynamic_sampling_plays_further_rounds_and_counts_what_it_drops() -> None:
    outcome = simulate(setting(groups=4, kept_share=0.5, rounds=10), steps=50)
    assert outcome.waited_seconds > 1.5 * simulate(setting(groups=4), steps=50).waited_seconds
    assert outcome.accounts.dropped == pytest.approx(outcome.accounts.trained, rel=0.2)
    more = simulate(setting(groups=4, kept_share=0.5, rounds=10, asked_by_wanted=3.0), steps=50)
    assert more.waited_seconds < outcome.waited_seconds
    assert more.accounts.surplus > 0


def test_groups_that_become_too_old_are_long_ones_and_without_a_bound_there_are_none() -> None:
    long = AssumedWorkload(24, 0.2, TURN)
    lagged = setting(workload=long, groups=4, group_size=4, max_lag=1, train_token_seconds=0.0)
    outcome = simulate(lagged, steps=100)
    assert outcome.stale_share > 0.02
    assert outcome.length_bias < 0.97
    accounts = played(replace(lagged, max_lag=100), 100).accounts
    assert (accounts.stale, accounts.trained_tokens) == (0, accounts.drawn_tokens)


class OneByOne:
    """Episodes of so many turns, in this order, and of the last number for ever."""

    def __init__(self, *turns: int) -> None:
        self.turns = list(turns)

    def draw_group(self, numbers: random.Random, size: int) -> list[EpisodePlan]:
        return [self._draw() for _ in range(size)]

    def _draw(self) -> EpisodePlan:
        count = self.turns.pop(0) if len(self.turns) > 1 else self.turns[0]
        return EpisodePlan((TURN,) * count)


def played(chosen: SimulationSetting, steps: int) -> SimulatedStream:
    """The whole run."""
    stream = SimulatedStream(chosen, random.Random(0), steps)
    stream.run(0, steps)
    return stream


def test_a_batch_is_the_groups_that_were_done_first() -> None:
    """The first group, of four seconds, is in the third batch."""
    turns = OneByOne(4, 2, 3, 6)
    chosen = setting(workload=turns, group_size=1, max_lag=2, train_token_seconds=0.0, sync_seconds=0.0)
    seconds = [step.episode_seconds for step in played(chosen, 5).steps]
    assert seconds[:3] == [[pytest.approx(2.0)], [pytest.approx(3.0)], [pytest.approx(4.0)]]


def test_a_group_ages_from_its_first_episode_and_not_while_it_waits_for_a_place() -> None:
    """Four groups have entered, one plays: it begins as the one before is trained on, one version behind."""
    chosen = setting(group_size=1, concurrency=1, max_lag=3, train_token_seconds=0.0)
    outcome = simulate(chosen, steps=steps_to_count(20, chosen))
    assert outcome.staleness == {1: 1.0}
    assert outcome.accounts.stale == 0


def test_a_group_in_the_place_of_one_that_is_too_old_enters_at_once() -> None:
    """The first lasts for ever; at lag 1 it is dropped as the second batch is taken, and one more is played."""
    chosen = setting(workload=OneByOne(1000, 1, 1, 1), group_size=1, max_lag=1, train_token_seconds=0.0)
    stream = played(chosen, 6)
    assert (stream.accounts.stale, stream.accounts.trained) == (1, 6)
    assert stream.accounts.started == 7
    assert stream.accounts.left == 0


def test_no_group_enters_that_no_step_would_train_on() -> None:
    stream = played(setting(groups=3, max_lag=4, workload=Same(*[TURN] * 5)), 9)
    assert stream.accounts.started == stream.accounts.trained == 9 * 3 * 2
    assert stream.accounts.left == 0


def test_where_so_many_groups_are_dropped_as_the_algorithms_rounds_would_ask_for_a_batch_is_short() -> None:
    chosen = setting(groups=3, kept_share=0.0, rounds=4, max_lag=1)
    stream = played(chosen, 5)
    assert [step.episode_seconds for step in stream.steps] == [[]] * 5
    dropped = stream.accounts.dropped / chosen.group_size
    # Those that play when the last of four batches of three is dropped are over too before the trainer goes on.
    assert 5 * 4 * 3 <= dropped <= 5 * (4 * 3 + chosen.slots_of_groups)
    assert stream.accounts.started == stream.accounts.dropped


def test_tokens_after_a_publication_are_younger_than_their_group() -> None:
    """An update takes a fourth of an episode, so its later turns are sampled by newer weights."""
    outcome = simulate(setting(workload=Same(*[TURN] * 8), groups=2, max_lag=4), steps=60)
    mean = {
        kind: sum(age * share for age, share in shares.items())
        for kind, shares in {"episodes": outcome.staleness, "tokens": outcome.token_staleness}.items()
    }
    assert mean["tokens"] < mean["episodes"]


def any_setting(numbers: random.Random) -> SimulationSetting:
    episodes = tuple(
        tuple((numbers.randrange(1, 200), numbers.randrange(1, 80)) for _ in range(numbers.randrange(1, 9)))
        for _ in range(20)
    )
    each = numbers.choice((1, 4))
    recorded = tuple(episodes[first : first + each] for first in range(0, 20, each))
    return setting(
        workload=RecordedWorkload(recorded, (0.0, 0.1, numbers.uniform(0, 5))),
        rates=EngineRates(
            weights_seconds=numbers.choice((0.0, 0.01)),
            context_seconds=numbers.choice((0.0, 1e-5)),
            sequence_seconds=numbers.choice((0.0, 0.002)),
            fixed_seconds=0.005,
            read_seconds=numbers.choice((0.0, 0.001)),
            request_seconds=numbers.choice((0.0, 0.01)),
            block_tokens=numbers.choice((1, 16)),
        ),
        engines=numbers.randrange(1, 4),
        slots=numbers.randrange(1, 12),
        cache_tokens=numbers.choice((300.0, 2000.0, float("inf"))),
        concurrency=numbers.randrange(1, 40),
        groups=numbers.randrange(1, 6),
        group_size=numbers.randrange(1, 5),
        train_fixed_seconds=numbers.uniform(0, 5),
        sync_seconds=numbers.choice((0.0, 1.0)),
        service_seconds=numbers.choice((0.0, 0.01)),
        kept_share=numbers.choice((1.0, 0.6)),
        rounds=numbers.randrange(1, 4),
        asked_by_wanted=numbers.choice((1.0, 2.0)),
        max_lag=numbers.choice((0, 1, 1, 2, 3, 7)),
    )


@pytest.mark.parametrize("seed", range(40))
def test_accounts_balance_and_nothing_is_older_than_the_lag(seed: int) -> None:
    numbers = random.Random(seed)
    chosen = any_setting(numbers)
    if chosen.max_lag == 0 or seed % 2:
        chosen = replace(chosen, rounds=50)  # so that no batch is short
    outcome = simulate(chosen, steps=40, seed=seed)
    accounts = outcome.accounts
    became = accounts.trained + accounts.dropped + accounts.surplus + accounts.stale
    assert accounts.started == became + accounts.left
    assert max(outcome.staleness) <= chosen.max_lag
    assert max(outcome.token_staleness) <= chosen.max_lag
    assert min(outcome.token_staleness) >= 0
    of_batch = chosen.groups * chosen.group_size
    sizes = [len(step.episode_seconds) for step in outcome.steps]
    assert max(sizes) <= of_batch
    if chosen.rounds == 50 or chosen.kept_share == 1:
        assert set(sizes) == {of_batch}
        assert not (chosen.max_lag and accounts.left), "the last batch leaves nothing"
    assert 0 <= outcome.trainer_idle <= 1
    assert -1e-9 <= outcome.engines_idle <= 1
    assert outcome.running <= min(chosen.engines * chosen.slots, chosen.concurrency) + 1e-9
    again = simulate(chosen, steps=40, seed=seed)
    assert again.steps == outcome.steps


@pytest.mark.parametrize("seed", range(10))
def test_no_episode_ends_twice_or_never(seed: int) -> None:
    """Every episode that is trained on has each of its turns once."""
    chosen = replace(any_setting(random.Random(1000 + seed)), max_lag=2, rounds=50)
    outcome = simulate(chosen, steps=20, seed=seed)
    per_step = chosen.groups * chosen.group_size
    assert all(len(step.episode_seconds) == per_step for step in outcome.steps)
    assert outcome.accounts.trained == 20 * per_step


def test_another_seed_is_another_run() -> None:
    chosen = any_setting(random.Random(3))
    assert simulate(chosen, steps=20, seed=1).steps != simulate(chosen, steps=20, seed=2).steps


def test_a_simulation_without_a_step_to_count_is_refused() -> None:
    with pytest.raises(ValueError, match="ask for more steps"):
        simulate(setting(max_lag=2), steps=7)
    assert len(simulate(setting(max_lag=2), steps=8).steps) == 1
    assert steps_to_count(1, setting(max_lag=2)) == 8
