"""What the papers on entropy and credit measure, as figures: EMPG (arXiv 2509.09265), AEM (arXiv 2605.00425).

The numbers are those of `algorithms.diagnostics`. A figure whose metrics were not logged is None and is left out.
"""

from dataclasses import dataclass

from megatron_empg.algorithms.diagnostics import BINS
from megatron_empg.report import svg
from megatron_empg.report.data import Points, RunData, quantile, ranges, thin
from megatron_empg.report.figure import Figure, calm, figure, smoothed

ROUNDING = 1e-12
"""A mean that is no larger is 0 but for rounding, and no curve."""
FEW = 3
"""Measurements; the spread of fewer is not drawn."""
BIN_NAMES = ("surest", *(str(number) for number in range(2, BINS)), "unsure")
BY_ENTROPY = f"turns in {BINS} bins by their entropy before the update"


@dataclass(frozen=True)
class BinnedMeasurement:
    """What one step measured of each bin, or the mean of several; None for a bin that was not measured."""

    step: int
    bins: list[float | None]


def entropy_change_by_bin(run: RunData) -> Figure | None:
    """First, middle and last measurement; means of neighbours where there are many."""
    measured = _measurements(run, "diagnostics/entropy_change_bin_{number}")
    if not measured:
        return None
    window = max(1, min(5, len(measured) // 6))
    middle = (len(measured) - window) // 2
    starts = sorted({0, middle, len(measured) - window}) if len(measured) >= FEW else range(len(measured))
    shown = [measured[start : start + window] for start in starts]
    # The palette's three blues; the last measurement has the strongest.
    colours = range(10 + len(shown) - 1, 9, -1)
    series = [svg.Marks(_steps(near), _mean(near), colour) for near, colour in zip(shown, colours, strict=True)]
    caption = (
        "How one update changed the mean entropy of its own batch's turns, in bins of equally many turns by their "
        "entropy before it. Look for bins above 0 beside others below it: all of them below 0 in every "
        "measurement is exploration dying out. EMPG's figure of entropy change by initial entropy, which compares "
        "the policies before and after a whole training."
    )
    if len(shown) == 1:
        caption = f"Measured once, in {_steps(measured)}. {caption}"
    chart = svg.bin_chart(BIN_NAMES, series, x_label=BY_ENTROPY, y_label="change of entropy (nats)")
    return figure("Entropy change by initial entropy", caption, chart)


def gradient_by_bin(run: RunData) -> Figure | None:
    """The mean of all measurements, with their spread where there are several."""
    measured = _measurements(run, "diagnostics/gradient_norm_bin_{number}")
    if not measured:
        return None
    series = svg.Marks(_steps(measured), _mean(measured), 0, reach=_reach(measured))
    turns = run.setting("logging.diagnostics_turns")
    drawn = f" {turns} turns are drawn at each measurement." if turns else ""
    spread = " Bars: from 5% to 95% of the measurements." if any(series.reach) else ""
    caption = (
        "Norm of the gradient, with respect to the parameters, of a single turn's mean log-prob without its "
        f"advantage; mean over {len(measured)} measurement{'s' if len(measured) > 1 else ''}.{drawn}{spread} Look "
        "for growth from left to right: it is what EMPG's g is to even out; a flat row leaves g nothing to do. "
        "EMPG's Proposition 1 says it of the gradient with respect to the logits."
    )
    chart = svg.bin_chart(BIN_NAMES, [series], x_label=BY_ENTROPY, y_label="gradient norm", ends=(0.0,))
    return figure("Gradient of single turns by entropy", caption, chart)


def relative_surprisal(run: RunData) -> Figure | None:
    """The product that governs the drift of entropy, beside the change that was measured."""
    product = smoothed("A × relative surprisal", run.series("diagnostics/advantage_times_relative_surprisal"), 0)
    if not product[0].points:
        return None
    change = svg.Line(
        "entropy change by the update", thin(run.series("diagnostics/entropy_change")), 1, marks=True
    )
    caption = (
        "Mean of A·(−log p − H) over the tokens that the loss sees, in nats. Look for its sign: above 0 the batch "
        "favours tokens more surprising than usual and pushes entropy up, below 0 down. AEM's theorem on the "
        "drift of entropy"
    )
    caption += ", here beside the drift that was measured." if change.points else "."
    chart = svg.line_chart([*product, change], y_ends=(0.0,), zero=True)
    return figure("Advantage × relative surprisal", caption, chart)


def amplified_and_damped(run: RunData) -> Figure | None:
    """Shares of turns with a scale above and below 1, by the outcome of their episodes."""
    lines = [
        svg.Line("right, amplified", calm(run.series("diagnostics/amplified_turns_right")), 0),
        svg.Line("right, damped", calm(run.series("diagnostics/damped_turns_right")), 0, dash=True),
        svg.Line("wrong, amplified", calm(run.series("diagnostics/amplified_turns_wrong")), 1),
        svg.Line("wrong, damped", calm(run.series("diagnostics/damped_turns_wrong")), 1, dash=True),
    ]
    caption = (
        "Shares of turns with a scale above and below 1, of episodes with a reward above 0 and of the others; "
        "moving means. Look for the distance between right and wrong: where the policy is surer when it is right, "
        "more of the right turns are amplified. Amplified wrong turns are the confident errors that EMPG punishes "
        "harder; for AEM the balance of the two turns training from exploration to exploitation."
    )
    return figure(
        "Amplified and damped turns", caption, svg.line_chart(lines, form=svg.percent, y_ends=(0.0, 1.0))
    )


def scale_spread(run: RunData) -> Figure | None:
    """EMPG's g or AEM's alpha: its extremes, and what lies between 5% and 95%."""
    low = run.series("empg/g_min") or run.series("aem/scale_min")
    high = run.series("empg/g_max") or run.series("aem/scale_max")
    low_quantile = run.series("empg/g_q05") or run.series("diagnostics/scale_q05")
    high_quantile = run.series("empg/g_q95") or run.series("diagnostics/scale_q95")
    lines = [
        svg.Line("largest", thin(high), 0),
        svg.Line("95%", thin(high_quantile), 2),
        svg.Line("5%", thin(low_quantile), 2, dash=True),
        svg.Line("smallest", thin(low), 0, dash=True),
    ]
    bands = _bands(ranges(low, high), 0, 0.08) + _bands(ranges(low_quantile, high_quantile), 2, 0.2)
    caption = (
        "What a trajectory's advantage is multiplied by; 1 on average. Look for room between 5% and 95% of the "
        "turns: where both are close to 1 nearly nothing is scaled, however far out the extremes are. EMPG's "
        "g(H), AEM's alpha."
    )
    return figure("Gradient scale g", caption, svg.line_chart(lines, bands, y_ends=(0.0,)))


def entropy_spread(run: RunData) -> Figure | None:
    """Normalised entropies: mean, and what lies between 5% and 95%."""
    low = run.series("empg/h_norm_q05") or run.series("diagnostics/h_norm_q05")
    high = run.series("empg/h_norm_q95") or run.series("diagnostics/h_norm_q95")
    lines = [
        svg.Line("95%", thin(high), 2),
        svg.Line("mean", thin(run.series("empg/h_norm_mean")), 1),
        svg.Line("5%", thin(low), 2, dash=True),
    ]
    caption = (
        "Where a turn lies between the batch's surest (0) and least sure one (1). Look for a band that uses the "
        "range: one outlier squeezes all other turns towards 0, and modulation tells them apart no more. H_norm "
        "of EMPG, and of AEM over its sets."
    )
    chart = svg.line_chart(lines, _bands(ranges(low, high), 2, 0.2), y_ends=(0.0,))
    return figure("Normalised entropy H_norm", caption, chart)


def bonus_share(run: RunData) -> Figure | None:
    """How much of the advantages the future-clarity bonus is; None where there is no bonus."""
    share, ratio = run.series("empg/bonus_share"), run.series("diagnostics/bonus_ratio")
    if not any(value for _, value in share + ratio):
        return None
    lines = [
        *smoothed("of the final advantages", share, 0),
        *smoothed("|bonus| by |advantage|", ratio, 1),
    ]
    alone = run.series("empg/bonus_only_tokens")
    if any(value for _, value in alone):
        lines += smoothed("tokens that it alone trains", alone, 3)
    target = run.setting("algorithm.modulation.target_bonus_ratio")
    if isinstance(target, int | float) and ratio:
        aimed = [(ratio[0][0], float(target)), (ratio[-1][0], float(target))]
        lines.append(svg.Line("target of |bonus| by |advantage|", aimed, 6, dash=True))
    caption = (
        "What the bonus for a clear next step is of the final advantages' size (by tokens, after centring), and a "
        "turn's mean |bonus| by its mean |advantage| before modulation. Look for a share well below 50%: above it "
        "the policy is trained to be clear rather than right. EMPG's ζ·f(H), whose part its ablation tells."
    )
    return figure("The bonus's share", caption, svg.line_chart(lines, form=svg.percent, y_ends=(0.0,)))


def length_push(run: RunData) -> Figure | None:
    """The mean advantage of turns beside that of tokens."""
    turns = run.series("empg/advantage_mean") or run.series("diagnostics/advantage_turn_mean")
    tokens = run.series("empg/advantage_token_mean") or run.series("diagnostics/advantage_token_mean")
    lines = smoothed("of a token", _without_rounding(tokens), 0)
    lines += smoothed("of a turn", _without_rounding(turns), 1)
    caption = (
        "Mean final advantage of a turn, and of a token, in which long turns count for more. Look for tokens "
        "below turns: longer turns have the lower advantages, and the update pushes against length. Above turns, "
        "it pushes towards length. EMPG's centring over turns makes the mean of turns 0, not that of tokens."
    )
    return figure("Mean advantage and length", caption, svg.line_chart(lines, y_ends=(0.0,), zero=True))


def _measurements(run: RunData, name: str) -> list[BinnedMeasurement]:
    """The steps at which any bin was measured."""
    by_bin = [dict(run.series(name.format(number=number))) for number in range(BINS)]
    steps = sorted({step for values in by_bin for step in values})
    return [BinnedMeasurement(int(step), [values.get(step) for values in by_bin]) for step in steps]


def _known(measured: list[BinnedMeasurement], number: int) -> list[float]:
    """What was measured of one bin, in ascending order."""
    values = [measurement.bins[number] for measurement in measured]
    return sorted(value for value in values if value is not None)


def _mean(measured: list[BinnedMeasurement]) -> list[float | None]:
    means: list[float | None] = []
    for number in range(BINS):
        known = _known(measured, number)
        means.append(sum(known) / len(known) if known else None)
    return means


def _reach(measured: list[BinnedMeasurement]) -> list[tuple[float, float] | None]:
    """Of each bin, the 5% and 95% quantiles of its measurements; None where they are too few."""
    reach: list[tuple[float, float] | None] = []
    for number in range(BINS):
        known = _known(measured, number)
        reach.append((quantile(known, 0.05), quantile(known, 0.95)) if len(known) >= FEW else None)
    return reach


def _steps(measured: list[BinnedMeasurement]) -> str:
    first, last = measured[0].step, measured[-1].step
    return f"step {first}" if first == last else f"steps {first} to {last}"


def _bands(drawn: list[tuple[float, float, float]], colour: int, strength: float) -> list[svg.Band]:
    return [svg.Band("", drawn, colour, strength)] if len(drawn) > 1 else []


def _without_rounding(points: Points) -> Points:
    return [(step, value if abs(value) > ROUNDING else 0.0) for step, value in points]
