"""The modulation `aem`."""

from megatron_empg.run.metric_families.metric import Metric, MetricFamily

AEM = MetricFamily(
    "AEM",
    "`algorithm.modulation=aem`.",
    (
        Metric("aem/scale_{min,max}", "", "the extremes of the scale alpha, whose mean over each set is 1"),
        Metric("aem/{amplified,damped}_turns", "share", "turns with a scale above and below 1"),
    ),
)
