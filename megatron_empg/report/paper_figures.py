"""What the papers on entropy and credit measure, as charts: EMPG (arXiv 2509.09265), AEM (arXiv 2605.00425).

The numbers are those of `algorithms.diagnostics`. A chart whose metrics were not logged is None and is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from megatron_empg.algorithms.diagnostics import BINS
from megatron_empg.report.bins import Marks, bin_chart
from megatron_empg.report.chart import Chart
from megatron_empg.report.data import RunData
from megatron_empg.report.figures import without_rounding
from megatron_empg.report.lines import Band, Line, calm, line_chart, smoothed
from megatron_empg.report.look import BLUES
from megatron_empg.report.points import ranges, thin

FEW = 3
"""Measurements; the spread of fewer is not drawn."""
BY_ENTROPY = f"turns in {BINS} bins by their entropy before the update"


@dataclass(frozen=True)
class Measurements:
    """What was measured of each bin: a row for each step, not a number where a bin was not measured."""

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)

    def part(self, start: int, length: int) -> Measurements:
        chosen = slice(start, start + length)
        return Measurements(self.steps[chosen], self.values[chosen])

    @property
    def label(self) -> str:
        first, last = self.steps[[0, -1]]
        return f"step {first}" if first == last else f"steps {first} to {last}"

    @property
    def mean(self) -> np.ndarray:
        return np.ma.masked_invalid(self.values).mean(axis=0).filled(math.nan)

    @property
    def spread(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The 5% and 95% quantiles of each bin, not a number where it has too few measurements; None where all
        have."""
        ends = np.full((2, BINS), math.nan)
        many = np.isfinite(self.values).sum(axis=0) >= FEW
        if not many.any():
            return None
        ends[:, many] = np.nanquantile(self.values[:, many], (0.05, 0.95), axis=0)
        return ends[0], ends[1]


def entropy_change_by_bin(run: RunData) -> Chart | None:
    """First, middle and last measurement; means of neighbours where there are many."""
    measured = _measurements(run, "diagnostics/entropy_change_bin_{number}")
    if measured is None:
        return None
    window = max(1, min(5, len(measured) // 6))
    middle = (len(measured) - window) // 2
    starts = list(range(len(measured)))
    if len(measured) >= FEW:
        starts = sorted({0, middle, len(measured) - window})
    series = []
    # The last measurement has the strongest blue.
    for start, colour in zip(starts, reversed(BLUES[: len(starts)]), strict=True):
        near = measured.part(start, window)
        series.append(Marks(near.label, near.mean, colour))
    caption = (
        "How one update changed the mean entropy of its own batch's turns, in bins of equally many turns by their "
        "entropy before it. Look for bins above 0 beside others below it: all of them below 0 in every "
        "measurement is exploration dying out. EMPG's figure of entropy change by initial entropy, which compares "
        "the policies before and after a whole training."
    )
    if len(measured) == 1:
        caption = f"Measured once, in {measured.label}. {caption}"
    title, y_label = "Entropy change by initial entropy", "change of entropy (nats)"
    return bin_chart(title, caption, series, x_label=BY_ENTROPY, y_label=y_label)


def gradient_by_bin(run: RunData) -> Chart | None:
    """The mean of all measurements, with their spread where there are several."""
    measured = _measurements(run, "diagnostics/gradient_norm_bin_{number}")
    if measured is None:
        return None
    marks, bars = Marks(measured.label, measured.mean), measured.spread
    count = "1 measurement"
    if len(measured) > 1:
        count = f"{len(measured)} measurements"
    turns = run.setting("logging.diagnostics_turns")
    drawn = f" {turns} turns are drawn at each measurement." if turns else ""
    spread = " Bars: from 5% to 95% of the measurements." if bars is not None else ""
    caption = (
        "Norm of the gradient, with respect to the parameters, of a single turn's mean log-prob without its "
        f"advantage; mean over {count}.{drawn}{spread} Look for growth from left to right: it is what EMPG's g is "
        "to even out; a flat row leaves g nothing to do. "
        "EMPG's Proposition 1 says it of the gradient with respect to the logits."
    )
    title = "Gradient of single turns by entropy"
    return bin_chart(title, caption, [marks], bars, x_label=BY_ENTROPY, y_label="gradient norm")


def relative_surprisal(run: RunData) -> Chart | None:
    """The product that governs the drift of entropy, beside the change that was measured."""
    product = smoothed("A × relative surprisal", run.series("diagnostics/advantage_times_relative_surprisal"))
    if not product[0].points:
        return None
    measured = thin(run.series("diagnostics/entropy_change"))
    change = Line("entropy change by the update", measured, "C1", marks=True)
    caption = (
        "Mean of A·(−log p − H) over the tokens that the loss sees, in nats. Look for its sign: above 0 the batch "
        "favours tokens more surprising than usual and pushes entropy up, below 0 down. AEM's theorem on the "
        "drift of entropy"
    )
    caption += ", here beside the drift that was measured." if measured else "."
    return line_chart("Advantage × relative surprisal", caption, [*product, change])


def amplified_and_damped(run: RunData) -> Chart | None:
    """Shares of turns with a scale above and below 1, by the outcome of their episodes."""
    lines = [
        Line("right, amplified", calm(run.series("diagnostics/amplified_turns_right"))),
        Line("right, damped", calm(run.series("diagnostics/damped_turns_right")), dash=True),
        Line("wrong, amplified", calm(run.series("diagnostics/amplified_turns_wrong")), "C1"),
        Line("wrong, damped", calm(run.series("diagnostics/damped_turns_wrong")), "C1", dash=True),
    ]
    caption = (
        "Shares of turns with a scale above and below 1, of episodes with a reward above 0 and of the others; "
        "moving means. Look for the distance between right and wrong: where the policy is surer when it is right, "
        "more of the right turns are amplified. Amplified wrong turns are the confident errors that EMPG punishes "
        "harder; for AEM the balance of the two turns training from exploration to exploitation."
    )
    return line_chart("Amplified and damped turns", caption, lines, unit="%", y_ends=(0.0, 1.0))


def scale_spread(run: RunData) -> Chart | None:
    """EMPG's g or AEM's alpha: its extremes, and what lies between 5% and 95%."""
    low = run.series("empg/g_min") or run.series("aem/scale_min")
    high = run.series("empg/g_max") or run.series("aem/scale_max")
    low_quantile = run.series("empg/g_q05") or run.series("diagnostics/scale_q05")
    high_quantile = run.series("empg/g_q95") or run.series("diagnostics/scale_q95")
    lines = [
        Line("largest", thin(high)),
        Line("95%", thin(high_quantile), "C2"),
        Line("5%", thin(low_quantile), "C2", dash=True),
        Line("smallest", thin(low), dash=True),
    ]
    bands = [Band("", ranges(low, high), "C0", 0.08), Band("", ranges(low_quantile, high_quantile), "C2")]
    caption = (
        "What a trajectory's advantage is multiplied by; 1 on average. Look for room between 5% and 95% of the "
        "turns: where both are close to 1 nearly nothing is scaled, however far out the extremes are. EMPG's "
        "g(H), AEM's alpha."
    )
    return line_chart("Gradient scale g", caption, lines, bands)


def entropy_spread(run: RunData) -> Chart | None:
    """Normalised entropies: mean, and what lies between 5% and 95%."""
    low = run.series("empg/h_norm_q05") or run.series("diagnostics/h_norm_q05")
    high = run.series("empg/h_norm_q95") or run.series("diagnostics/h_norm_q95")
    lines = [
        Line("95%", thin(high), "C2"),
        Line("mean", thin(run.series("empg/h_norm_mean")), "C1"),
        Line("5%", thin(low), "C2", dash=True),
    ]
    caption = (
        "Where a turn lies between the batch's surest (0) and least sure one (1). Look for a band that uses the "
        "range: one outlier squeezes all other turns towards 0, and modulation tells them apart no more. H_norm "
        "of EMPG, and of AEM over its sets."
    )
    return line_chart("Normalised entropy H_norm", caption, lines, [Band("", ranges(low, high), "C2")])


def bonus_share(run: RunData) -> Chart | None:
    """How much of the advantages the future-clarity bonus is; None where there is no bonus."""
    share, ratio = run.series("empg/bonus_share"), run.series("diagnostics/bonus_ratio")
    if not any(value for _, value in share + ratio):
        return None
    lines = smoothed("of the final advantages", share) + smoothed("|bonus| by |advantage|", ratio, "C1")
    alone = run.series("empg/bonus_only_tokens")
    if any(value for _, value in alone):
        lines += smoothed("tokens that it alone trains", alone, "C3")
    target = run.setting("algorithm.modulation.target_bonus_ratio")
    if isinstance(target, int | float) and ratio:
        aimed = [(ratio[0][0], float(target)), (ratio[-1][0], float(target))]
        lines.append(Line("target of |bonus| by |advantage|", aimed, "C6", dash=True))
    caption = (
        "What the bonus for a clear next turn is of the final advantages' size (by tokens, after centring), and a "
        "turn's mean |bonus| by its mean |advantage| before modulation. Look for a share well below 50%: above it "
        "the policy is trained to be clear rather than right. EMPG's ζ·f(H), whose part its ablation tells."
    )
    return line_chart("The bonus's share", caption, lines, unit="%")


def length_push(run: RunData) -> Chart | None:
    """The mean advantage of turns beside that of tokens."""
    turns = run.series("empg/advantage_mean") or run.series("diagnostics/advantage_turn_mean")
    tokens = run.series("empg/advantage_token_mean") or run.series("diagnostics/advantage_token_mean")
    lines = smoothed("of a token", without_rounding(tokens))
    lines += smoothed("of a turn", without_rounding(turns), "C1")
    caption = (
        "Mean final advantage of a turn, and of a token, in which long turns count for more. Look for tokens "
        "below turns: longer turns have the lower advantages, and the update pushes against length. Above turns, "
        "it pushes towards length. EMPG's centring over turns makes the mean of turns 0, not that of tokens."
    )
    return line_chart("Mean advantage and length", caption, lines)


def _measurements(run: RunData, name: str) -> Measurements | None:
    """None where no bin was measured at any step."""
    by_bin = [dict(run.series(name.format(number=number))) for number in range(BINS)]
    steps = sorted(set().union(*by_bin))
    if not steps:
        return None
    values = [[measured.get(step, math.nan) for measured in by_bin] for step in steps]
    return Measurements(np.array(steps, dtype=int), np.array(values))
