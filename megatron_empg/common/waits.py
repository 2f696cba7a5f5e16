"""How long each wait may be. Waits lie inside each other, and the inner one must end first.

    request < turn                      }
    turn and environment step           } < episode < round < batch < phase < collective
    synchronisation                                           }

Where episodes play on while new weights come, a request lasts through a synchronisation, which pauses its engine:

    synchronisation < request

Were two of them equal, the outer one would end what the inner one could have handled: a frozen engine would cost
the batch instead of an episode that starts over on another engine.
"""

from dataclasses import dataclass

from megatron_empg.common.limits import LimitsConfig


@dataclass(frozen=True)
class Waits:
    """The limits in force, in seconds. `batch` is also that of one pass of an evaluation."""

    request: float
    turn: float
    environment: float
    episode: float
    round: float
    batch: float
    sync: float
    phase: float
    collective: float


# (inner, the recipe's key for it, outer, the recipe's key for that)
_NESTED = (
    ("request", "request_timeout", "turn", "turn_timeout"),
    ("turn", "turn_timeout", "episode", "episode_timeout"),
    ("environment", "environment_timeout", "episode", "episode_timeout"),
    ("episode", "episode_timeout", "round", "round_timeout"),
    ("round", "round_timeout", "batch", "rollout_timeout"),
    ("batch", "rollout_timeout", "phase", "phase_timeout"),
    ("sync", "sync_timeout", "phase", "phase_timeout"),
    ("phase", "phase_timeout", "collective", "collective_timeout"),
)


def nested_waits(given: LimitsConfig, *, several_rounds: bool, streams: bool = False) -> Waits:
    """The limits in force: those given, and the others by their defaults. `streams`: with `rollout.max_lag`.

    Raises ValueError naming two that do not lie inside each other.
    """
    batch = float(given.rollout_timeout)
    sync = float(given.sync_timeout)
    round_ = given.round_timeout or batch * (0.5 if several_rounds else 0.9)
    episode = given.episode_timeout or round_ / 2
    turn = given.turn_timeout or episode / 3
    request = given.request_timeout or turn * 0.9
    environment = given.environment_timeout or episode / 3
    phase = given.phase_timeout or max(batch, sync) + 60
    collective = given.collective_timeout or phase + 600
    waits = Waits(request, turn, environment, episode, round_, batch, sync, phase, collective)
    for inner, inner_key, outer, outer_key in _NESTED:
        shorter, longer = getattr(waits, inner), getattr(waits, outer)
        if shorter >= longer:
            raise ValueError(
                f"limits.{inner_key} is {shorter:g} s, which must be below limits.{outer_key} ({longer:g} s), the "
                "wait that it lies in: lower the first or raise the second"
            )
    if streams and sync >= request:
        raise ValueError(
            f"limits.sync_timeout is {sync:g} s, which with rollout.max_lag must be below limits.request_timeout "
            f"({request:g} s): requests wait while new weights come, and a longer pause would fail them all and "
            "take every engine for dead; lower the first, or raise the second with limits.rollout_timeout, from "
            "which it follows"
        )
    return waits
