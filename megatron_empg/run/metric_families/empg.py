"""The modulation `empg`."""

from megatron_empg.run.metric_families.metric import Metric, MetricFamily

EMPG = MetricFamily(
    "EMPG",
    "`algorithm.modulation=empg`. Over the batch's turns, each counted once, unless tokens are named.",
    (
        Metric("empg/k", "", "k in force; it moves with `algorithm.modulation.target_scale_ratio` alone"),
        Metric("empg/zeta", "", "zeta in force; it moves with `algorithm.modulation.target_bonus_ratio` alone"),
        Metric("empg/h_norm_mean", "", "mean normalised entropy: 0 is the surest turn", "not near 0 or 1"),
        Metric("empg/h_norm_{std,q05,q95}", "", "its spread", "q95 - q05 near 0: one outlier squeezes all others"),
        Metric("empg/g_{min,max}", "", "the extremes of the scale g, whose mean is 1"),
        Metric("empg/g_{std,q05,q95}", "", "the spread of g", "q95 / q05 near 1: EMPG scales nothing"),
        Metric("empg/bonus_mean", "", "mean future-clarity bonus, zeta·f"),
        Metric("empg/advantage_mean", "", "mean final advantage of a turn", "0 when centred"),
        Metric(
            "empg/advantage_token_mean",
            "",
            "mean final advantage of an own token, masked ones included",
            "near 0; see below",
        ),
        Metric(
            "empg/bonus_share",
            "share",
            "of the advantages' size (by own tokens, masked ones included, after centring), what comes from the "
            "bonus",
            "well below 0.5",
        ),
        Metric(
            "empg/bonus_only_tokens",
            "share",
            "own tokens whose turn has no advantage before modulation (as where its group's rewards are equal): "
            "bonus and centring alone train them",
            "0 with dapo",
        ),
    ),
)
