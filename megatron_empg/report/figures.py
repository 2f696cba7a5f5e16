"""What a run learned, as charts: success, the policy's change, and what an advantage is made of.

A chart whose series was not logged is None and is left out.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context

from megatron_empg.common.wilson import WIDE, wilson
from megatron_empg.report.bins import Marks, change_chart
from megatron_empg.report.chart import Chart, blank, finished
from megatron_empg.report.data import RunData, part
from megatron_empg.report.lines import Band, Line, line_chart, smoothed
from megatron_empg.report.look import BLUES, MUTED, STYLE
from megatron_empg.report.points import Points, Range, ranges, thin

SPLITS = (("test_id", "in distribution"), ("test_ood", "out of distribution"))
DECILES = 10
SCATTER_POINTS = 600
ROUNDING = 1e-12
"""A mean that is no larger is 0 but for rounding, and no curve."""


class TurnCredit(NamedTuple):
    """A turn's entropy, its final advantage and that of its trajectory."""

    entropy: float
    final: float
    trajectory: float


def evaluation(run: RunData) -> Chart | None:
    lines, bands = [], []
    for place, (split, label) in enumerate(SPLITS):
        colour = f"C{place}"
        lines.append(Line(f"{label}, sampled", run.series(f"eval/{split}/sampled"), colour, marks=True))
        lines.append(Line(f"{label}, greedy", run.series(f"eval/{split}/greedy"), colour, dash=True))
        bands.append(Band("", intervals(run, split), colour, 0.13))
    caption = "Share of fixed questions answered exactly, with sampled or greedy decoding."
    if any(len(band.ranges) > 1 for band in bands):
        caption += " Shaded: 95% interval of sampled success over the questions asked."
    return line_chart("Success on held-out questions", caption + _how_sure(run), lines, bands, unit="%")


def intervals(run: RunData, split: str) -> list[Range]:
    """The 95% interval of sampled success at each evaluation that says how many questions were asked."""
    asked = dict(run.series(f"eval/{split}/sampled_questions"))
    found = []
    for step, rate in run.series(f"eval/{split}/sampled"):
        count = int(asked.get(step, 0))
        if count > 0 and 0 <= rate <= 1:
            interval = wilson(round(rate * count), count)
            found.append(Range(step, interval.low, interval.high))
    return found


def _how_sure(run: RunData) -> str:
    """What the fewest questions of a split can say of one share, where that is little; else nothing."""
    asked: Points = []
    for split, _ in SPLITS:
        asked += run.series(f"eval/{split}/sampled_questions")
    fewest = min((int(count) for _, count in asked if count >= 1), default=0)
    if not fewest:
        return ""
    half = wilson(fewest // 2, fewest).half_width
    if half <= WIDE:
        return ""
    return f" {fewest} questions tell a share of 50% to ± {100 * half:.0f} points (95% interval) each time."


def training(run: RunData) -> Chart | None:
    success, reward = run.series("train/success"), run.series("train/reward")
    lines = smoothed("success", success)
    if reward != success:
        lines += smoothed("reward", reward, "C1")
    caption = "Episodes of each training batch (all groups, before any filter). Bold: moving mean."
    return line_chart("Success in training", caption, lines, unit="%")


def warm_up_loss(run: RunData) -> Chart | None:
    lines = smoothed("training", run.series("policy/loss"))
    lines.append(Line("held out", run.series("validation/loss"), "C1", marks=True))
    caption = "Mean cross-entropy of the walkthroughs' own tokens, in nats."
    return line_chart("Loss", caption, lines, y_ends=())


def sure_tokens(run: RunData) -> Chart | None:
    lines = smoothed("tokens", run.series("policy/correct_surely"), "C2")
    caption = "Share of the walkthroughs' tokens that the policy gives a probability above 0.9."
    return line_chart("Sure tokens", caption, lines, unit="%")


def kl_step(run: RunData) -> Chart | None:
    # The first update of a batch still has the policy that sampled it: there is only rounding, no curve.
    points = without_rounding(run.series("policy/approx_kl"))
    caption = "How far one step moves the policy: k3 estimate over the batch's tokens, in nats."
    if not any(value for _, value in points):
        caption += " With one update per batch it is taken where the policy has not moved yet, so it is 0."
    return line_chart("KL of old to new policy", caption, smoothed("KL old → new", points))


def kl_initial(run: RunData) -> Chart | None:
    line = Line("KL to initial", thin(run.series("policy/kl_to_initial")), "C3", marks=True)
    how = "A measurement; not in the loss"
    if run.setting("algorithm.kl.coefficient") or run.setting("algorithm.kl_coefficient"):
        how = "The loss holds it back"
    caption = f"How far training has moved the policy in all, per token, in nats. {how}."
    return line_chart("KL to the initial policy", caption, [line])


def entropy(run: RunData) -> Chart | None:
    spread = ranges(run.series("policy/step_entropy_q05"), run.series("policy/step_entropy_q95"))
    lines = [
        Line("turns, median", thin(run.series("policy/step_entropy_median"))),
        Line("tokens, mean", thin(run.series("policy/entropy")), "C1"),
    ]
    caption = (
        "Exact entropy of the policy over its whole vocabulary, in nats: of single tokens, and as mean over each "
        "turn's own tokens (what EMPG reads)."
    )
    return line_chart("Entropy", caption, lines, [Band("turns, 5% to 95%", spread, "C0", 0.15)])


def entropy_change(run: RunData) -> Chart | None:
    """Deciles of turn entropy in the first batches beside the same deciles in the last."""
    if len(run.steps) < 2:
        return None
    window = max(1, min(5, len(run.steps) // 4))
    batches = "batch" if window == 1 else f"{window} batches"
    before = Marks(f"first {batches}", deciles(run.steps[:window]))
    after = Marks(f"last {batches}", deciles(run.steps[-window:]))
    caption = (
        f"Turns of the first {batches}, sorted by entropy into ten equal bins, and the same for the last "
        f"{batches}; each mark is a bin's mean. It compares distributions: no single turn is followed, and the "
        "agent visits other states as it learns."
    )
    labels = {"x_label": "decile of turn entropy", "y_label": "nats"}
    return change_chart("Turn entropy by bin, first and last", caption, before, after, **labels)


def deciles(batches: Sequence[dict[str, list[float | None]]]) -> list[float]:
    """Means of the ten equal bins of the turns' entropies in ascending order."""
    ordered: list[float] = []
    for batch in batches:
        ordered += [value for value in batch["step_entropies"] if value is not None]
    ordered.sort()
    means = []
    for place in range(DECILES):
        start, end = len(ordered) * place // DECILES, len(ordered) * (place + 1) // DECILES
        inside = ordered[start:end] or [float(np.quantile(ordered, (place + 0.5) / DECILES))]
        means.append(fmean(inside))
    return means


def advantage_entropy(run: RunData) -> Chart | None:
    clouds: dict[str, Points] = {"trajectory advantage above 0": [], "below 0": [], "0": []}
    for turn in newest_turns(run):
        name = "0"
        if turn.trajectory > 0:
            name = "trajectory advantage above 0"
        elif turn.trajectory < 0:
            name = "below 0"
        clouds[name].append((turn.entropy, turn.final))
    caption = "One dot per turn of the last batches: the surer the turn, the more of the outcome it is given."
    if part(run, "modulation")["name"] == "none":
        caption = "One dot per turn of the last batches. Without modulation a turn's entropy changes nothing."
    return scatter_chart(
        "Advantage against turn entropy", caption, clouds, ("C0", "C1", "C4"), x_label="turn entropy (nats)"
    )


def advantage_advantage(run: RunData) -> Chart | None:
    turns = sorted(newest_turns(run))
    clouds: dict[str, Points] = {}
    for place, name in enumerate(("surest third of turns", "middle third", "least sure third")):
        third = turns[len(turns) * place // 3 : len(turns) * (place + 1) // 3]
        clouds[name] = [(turn.trajectory, turn.final) for turn in third]
    caption = (
        "The same turns: what the trajectory earned and what the turn was given. On the diagonal, nothing changed."
    )
    title = "Final against trajectory advantage"
    chart = scatter_chart(title, caption, clouds, BLUES, x_label="trajectory advantage")
    if chart is not None:
        chart.figure.axes[0].axline((0, 0), slope=1, color=MUTED, linestyle="--", linewidth=1)
    return chart


def scatter_chart(
    title: str, caption: str, clouds: dict[str, Points], colours: Sequence[str], *, x_label: str
) -> Chart | None:
    """Clouds of points by name, final advantages upwards. None without any point."""
    if not any(clouds.values()):
        return None
    with rc_context(STYLE):
        figure, axes = blank(x_label=x_label, y_label="final advantage")
        for (name, points), colour in zip(clouds.items(), colours, strict=True):
            if points:
                across, up = zip(*points, strict=True)
                axes.plot(across, up, "o", color=colour, alpha=0.55, markersize=5, markeredgewidth=0, label=name)
        return finished(title, caption, figure)


def newest_turns(run: RunData) -> list[TurnCredit]:
    """The turns of the last batches, at most `SCATTER_POINTS`."""
    turns: list[TurnCredit] = []
    for batch in reversed(run.steps):
        columns = (batch["step_entropies"], batch["step_advantages"], batch["trajectory_advantages"])
        for entropy, final, trajectory in zip(*columns, strict=False):
            if entropy is not None and final is not None and trajectory is not None:
                turns.append(TurnCredit(entropy, final, trajectory))
        if len(turns) >= SCATTER_POINTS:
            break
    return turns[:SCATTER_POINTS]


def without_rounding(points: Points) -> Points:
    return [(step, value if abs(value) > ROUNDING else 0.0) for step, value in points]
