"""The regularizer `epo`."""

from megatron_empg.run.metric_families.metric import Metric, MetricFamily

EPO = MetricFamily(
    "EPO",
    "`algorithm.regularizer=epo`.",
    (
        Metric("epo/history", "nats", "mean entropy of past batches, the middle of the band; absent in the first"),
        Metric(
            "epo/outside_share",
            "share",
            "turns whose entropy, before the update, is outside the band; absent in the first batch",
            "falling to 0 where the smoothing works",
        ),
        Metric("epo/phase_weight", "", "factor of the penalty by the run's progress; 1 without phase weights"),
        Metric("policy/epo_outside", "share", "the same as `epo/outside_share`, of tokens during the update"),
        Metric("policy/epo_penalty", "", "mean penalty P of the update's tokens, with the phase weight"),
    ),
)
