"""Supervised warm-up."""

from megatron_empg.run.metric_families.metric import Metric, MetricFamily

WARM_UP = MetricFamily(
    "Supervised warm-up",
    "`empg sft` alone.",
    (
        Metric("policy/correct_surely", "share", "the batch's own tokens with a probability above 0.9", "rising"),
        Metric(
            "validation/loss",
            "nats",
            "mean loss of the own tokens of held-out walkthroughs, which a script played (`sft.validate_every`)",
            "falling to a floor above 0: the scripted searcher errs on purpose",
        ),
        Metric("validation/correct_surely", "share", "of them, those with a probability above 0.9", "rising"),
    ),
)
