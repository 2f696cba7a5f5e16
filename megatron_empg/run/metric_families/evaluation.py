"""Evaluations on fixed questions."""

from megatron_empg.run.metric_families.metric import Metric, MetricFamily

EVALUATION = MetricFamily(
    "Evaluation",
    "On the fixed questions of each split; KIND is the environment's kind of question.",
    (
        Metric(
            "eval/SPLIT/{sampled,greedy}",
            "share",
            "success; an episode that ended in an error is not a success",
            "rising",
        ),
        Metric("eval/SPLIT/{sampled,greedy}/KIND", "share", "success among the questions of a kind", "rising"),
        Metric("eval/SPLIT/{sampled,greedy}_questions", "", "questions asked"),
        Metric("eval/SPLIT/{sampled,greedy}_errors", "episodes", "those whose episode ended in an error", "0"),
    ),
)
