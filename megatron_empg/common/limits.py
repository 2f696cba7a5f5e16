"""When training stops and how long waits may be: the keys `limits` of a recipe, read by every part of it."""

from typing import Annotated

from pydantic import Field

from megatron_empg.common.section import LARGEST, NonNegative, Positive, Section

Seconds = Annotated[float, Field(gt=0, le=LARGEST)] | None
MEAN_GAP = {"float32": 1e-3, "bfloat16": 0.05}
LARGEST_GAP = {"float32": 0.1, "bfloat16": 20.0}


class LimitsConfig(Section):
    """When training stops, and how long waits may be: one that is not given follows from the one it lies in."""

    logprob_gap: Annotated[float, Field(gt=0)] | None = None
    """Mean |log-prob of the engine - log-prob of the actor| above which training stops: 1e-3 in float32,
    0.05 in bfloat16 unless given. A larger gap means stale or wrong weights, or other sampling than stated. It
    holds for all tokens together and for those of each engine."""
    logprob_gap_max: Annotated[float, Field(gt=0)] | None = None
    """The same for the single token with the largest gap: 0.1 in float32; 20 in bfloat16, where rounding alone may
    move an unlikely token by several nats (the loss takes no larger ratio either)."""
    min_groups: Positive | None = None
    """Groups that a batch needs to be trained on; an eighth of `rollout.groups` unless given. With fewer the step
    trains on nothing, which may happen `max_idle_steps` times."""
    max_error_share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of a batch's (or an evaluation's) episodes that may end in an error, which is never trained on."""
    max_idle_steps: NonNegative = 3
    """Steps in a row with nothing to learn after which training stops."""
    max_skipped_updates: NonNegative = 3
    """Optimizer steps in a row that may be skipped because loss or gradient was not finite."""
    rollout_timeout: Positive = 3600
    """Seconds one batch's rollout may take, all its rounds together; also one pass of an evaluation."""
    round_timeout: Seconds = None
    """Seconds one round of a batch may take: half of the batch's where there may be several, else nine tenths."""
    episode_timeout: Seconds = None
    """Seconds one episode may take, half of a round's: one that lost its engine can start over within it."""
    turn_timeout: Seconds = None
    """Seconds one turn may take, a third of an episode's."""
    request_timeout: Seconds = None
    """Seconds one request to an engine may take, nine tenths of a turn's."""
    environment_timeout: Seconds = None
    """Seconds one step of the environment may take, a third of an episode's."""
    environment_memory: Annotated[float, Field(gt=0, le=LARGEST)] | None = None
    """GiB that an environment's worker processes may take together, so that no more live than fit; episodes beyond
    them wait. Half of what the rollout service's machine has free unless given."""
    sync_timeout: Positive = 600
    """Seconds one weight synchronisation may take; with `rollout.max_lag` less than one request."""
    phase_timeout: Seconds = None
    """Seconds after which a phase of a step counts as hanging: a minute more than the longest of the above."""
    collective_timeout: Seconds = None
    """Seconds that ranks wait for each other: ten minutes more than a phase."""

    def fewest_groups(self, groups: int) -> int:
        """Groups in force that a batch of `groups` needs to be trained on."""
        if self.min_groups is not None:
            return self.min_groups
        return max(1, groups // 8)

    def mean_gap(self, dtype: str) -> float:
        """The limit in force for the mean of log-probs' gaps, in nats, where the actor computes in `dtype`."""
        if self.logprob_gap is not None:
            return self.logprob_gap
        return MEAN_GAP[dtype]

    def largest_gap(self, dtype: str) -> float:
        """The limit in force for a single token's gap, in nats. The default is never below the mean's."""
        if self.logprob_gap_max is not None:
            return self.logprob_gap_max
        return max(LARGEST_GAP[dtype], self.mean_gap(dtype))
