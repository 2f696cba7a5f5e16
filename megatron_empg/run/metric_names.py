"""The registry of every metric that a run writes; each family is declared in a file of metric_families/.

`tools/metrics_page.py` makes the tables of docs/metrics.md of it. A metric that is not here fails a test.
"""

from megatron_empg.run.metric_families.aem import AEM
from megatron_empg.run.metric_families.agreement import AGREEMENT
from megatron_empg.run.metric_families.diagnostics import DIAGNOSTICS
from megatron_empg.run.metric_families.empg import EMPG
from megatron_empg.run.metric_families.engines import ENGINES
from megatron_empg.run.metric_families.epo import EPO
from megatron_empg.run.metric_families.evaluation import EVALUATION
from megatron_empg.run.metric_families.metric import STANDS_FOR, Metric, MetricFamily, Unit
from megatron_empg.run.metric_families.policy import POLICY
from megatron_empg.run.metric_families.rollout import ROLLOUT
from megatron_empg.run.metric_families.stream import STREAM
from megatron_empg.run.metric_families.time import TIME
from megatron_empg.run.metric_families.warm_up import WARM_UP

__all__ = [
    "AEM",
    "AGREEMENT",
    "DIAGNOSTICS",
    "EMPG",
    "ENGINES",
    "EPO",
    "EVALUATION",
    "FAMILIES",
    "POLICY",
    "ROLLOUT",
    "STANDS_FOR",
    "STREAM",
    "TIME",
    "WARM_UP",
    "Metric",
    "MetricFamily",
    "Unit",
    "by_clock",
    "find",
]

FAMILIES = (
    ROLLOUT,
    STREAM,
    ENGINES,
    AGREEMENT,
    POLICY,
    EMPG,
    AEM,
    EPO,
    DIAGNOSTICS,
    EVALUATION,
    WARM_UP,
    TIME,
)
"""In the page's order."""


def find(name: str) -> Metric | None:
    """The entry of a metric's name; None for a name that no run writes."""
    for family in FAMILIES:
        for metric in family.metrics:
            if metric.covers(name):
                return metric
    return None


def by_clock(name: str) -> bool:
    """Whether two runs that learn the same to the bit may differ in this metric."""
    for family in FAMILIES:
        for metric in family.metrics:
            if metric.covers(name):
                return family.by_clock or metric.by_clock
    return False
