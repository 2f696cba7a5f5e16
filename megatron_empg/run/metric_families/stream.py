"""The stream of groups, with `rollout.max_lag`."""

from megatron_empg.run.metric_families.metric import Metric, MetricFamily

STREAM = MetricFamily(
    "The stream of groups",
    "`rollout.max_lag` above 0. Groups are counted since the run began: those that started are those trained on, "
    "those dropped, those in flight and those ready. An own token's lag is the trained version less that which "
    "sampled it.",
    (
        Metric("stream/lag_mean", "steps", "mean lag of an own token", "below `rollout.max_lag`"),
        Metric("stream/lag_max", "steps", "the largest", "at most `rollout.max_lag`"),
        Metric("stream/lag_share_BIN", "share", "own tokens with a lag of BIN"),
        Metric("stream/started", "groups", "that have entered the stream"),
        Metric("stream/trained", "groups", "handed over to be trained on, this batch's among them"),
        Metric(
            "stream/dropped_{equal,errors,stale}",
            "groups",
            "dropped: equal rewards, errors that left fewer than two episodes, older than the lag allows",
        ),
        Metric("stream/in_flight", "groups", "that were not done when the batch was handed over"),
        Metric("stream/ready", "groups", "that were done then, and wait for the next batch"),
        Metric(
            "stream/wait_seconds",
            "seconds",
            "that the trainer waited for groups of this batch",
            "near 0 where training takes longer than playing",
            by_clock=True,
        ),
        Metric(
            "stream/idle_seconds",
            "seconds",
            "since the batch before, in which an episode could have been played, all slots were taken and the "
            "trainer did not wait for a batch",
            "near 0 where playing takes longer than training; else a larger `rollout.max_lag` plays more",
            by_clock=True,
        ),
    ),
)
