"""What the papers measure."""

from megatron_empg.run.metric_families.metric import Metric, MetricFamily

DIAGNOSTICS = MetricFamily(
    "What the papers measure",
    "The first four every `logging.diagnostics_every` steps, the others in every step. A bin holds a tenth of the "
    "turns, in the order of their entropies before the update, numbered from 0.",
    (
        Metric(
            "diagnostics/entropy_change",
            "nats",
            "how the mean entropies of the batch's turns changed by its update",
            "no steady fall",
        ),
        Metric("diagnostics/entropy_change_bin_BIN", "nats", "the same, of the turns in a bin"),
        Metric(
            "diagnostics/gradient_norm",
            "",
            "norm of the gradient of one turn's mean log-prob, without its advantage: the mean over "
            "`logging.diagnostics_turns` turns",
        ),
        Metric(
            "diagnostics/gradient_norm_bin_BIN",
            "",
            "the same, of the turns in a bin",
            "growing with the bin: what EMPG's g is to even out",
        ),
        Metric(
            "diagnostics/advantage_times_relative_surprisal",
            "nats",
            "mean of A·(-log p - H) over the own tokens that the loss sees",
            "above 0 the batch pushes entropy up, below 0 down",
        ),
        Metric(
            "diagnostics/advantage_{turn,token}_mean",
            "",
            "mean final advantage of a turn, and of an own token, masked ones included; absent with empg, which "
            "has them as `empg/advantage_{mean,token_mean}`",
            "near 0",
        ),
        Metric("diagnostics/h_norm_{std,q05,q95}", "", "aem: spread of the turns' normalised entropies"),
        Metric("diagnostics/scale_{std,q05,q95}", "", "aem: spread of the scale alpha"),
        Metric(
            "diagnostics/bonus_ratio",
            "",
            "a turn's mean |bonus| by its mean |advantage| before modulation",
            "`algorithm.modulation.target_bonus_ratio`, where it is given",
        ),
        Metric(
            "diagnostics/{amplified,damped}_turns_{right,wrong}",
            "share",
            "turns with a scale above and below 1, of episodes with a reward above 0 and of the others",
        ),
    ),
)
