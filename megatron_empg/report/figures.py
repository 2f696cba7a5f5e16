"""The report's figures: each from a run's data, with a title and a caption that says what is shown.

A figure whose series was not logged is None and is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_empg.common.wilson import WIDE, wilson
from megatron_empg.report import svg
from megatron_empg.report.data import RunData, part, quantile, ranges, thin
from megatron_empg.report.figure import Figure, figure, smoothed

PHASES = ("rollout", "score", "update", "sync", "evaluate", "checkpoint", "other")
SPLITS = (("test_id", "in distribution"), ("test_ood", "out of distribution"))
DECILES = 10
SCATTER_POINTS = 600


def evaluation(run: RunData, name: str = "Success on held-out questions") -> Figure | None:
    lines, bands = [], []
    for colour, (split, label) in enumerate(SPLITS):
        sampled, greedy = run.series(f"eval/{split}/sampled"), run.series(f"eval/{split}/greedy")
        lines.append(svg.Line(f"{label}, sampled", sampled, colour, marks=True))
        lines.append(svg.Line(f"{label}, greedy", greedy, colour, dash=True))
        likely = _likely(run, split)
        if len(likely) > 1:
            bands.append(svg.Band("", likely, colour, 0.13))
    shaded = " Shaded: 95% interval of sampled success over the questions asked." if bands else ""
    caption = (
        "Share of fixed questions answered exactly, with sampled or greedy decoding." + shaded + _how_sure(run)
    )
    return figure(name, caption, svg.line_chart(lines, bands, form=svg.percent, y_ends=(0.0,)))


def _likely(run: RunData, split: str) -> list[tuple[float, float, float]]:
    """(step, low, high): the 95% interval of sampled success at each evaluation that says how many were asked."""
    asked = dict(run.series(f"eval/{split}/sampled_questions"))
    found = []
    for step, rate in run.series(f"eval/{split}/sampled"):
        count = int(asked.get(step, 0))
        if count:
            interval = wilson(round(rate * count), count)
            found.append((step, interval.low, interval.high))
    return found


def _how_sure(run: RunData) -> str:
    """What the fewest questions of a split can say of one share, where that is little; else nothing."""
    asked = [int(count) for split, _ in SPLITS for _, count in run.series(f"eval/{split}/sampled_questions")]
    fewest = min((count for count in asked if count), default=0)
    if not fewest:
        return ""
    half = wilson(fewest // 2, fewest).half_width
    if half <= WIDE:
        return ""
    return f" {fewest} questions tell a share of 50% to ± {100 * half:.0f} points (95% interval) each time."


def training(run: RunData) -> Figure | None:
    success, reward = run.series("train/success"), run.series("train/reward")
    lines = smoothed("success", success, 0)
    if reward != success:
        lines += smoothed("reward", reward, 1)
    caption = "Episodes of each training batch (all groups, before any filter). Bold: moving mean."
    return figure("Success in training", caption, svg.line_chart(lines, form=svg.percent, y_ends=(0.0,)))


def imitation(run: RunData) -> list[Figure | None]:
    """The figures of a supervised warm-up: loss, and how much of the walkthroughs is certain."""
    if run.setting("sft") is None:
        return []
    lines = smoothed("training", run.series("policy/loss"), 0)
    lines.append(svg.Line("held out", run.series("validation/loss"), 1, marks=True))
    surely = smoothed("tokens", run.series("policy/correct_surely"), 2)
    return [
        figure("Loss", "Mean cross-entropy of the walkthroughs' own tokens, in nats.", svg.line_chart(lines)),
        figure(
            "Sure tokens",
            "Share of the walkthroughs' tokens that the policy gives a probability above 0.9.",
            svg.line_chart(surely, form=svg.percent, y_ends=(0.0,)),
        ),
    ]


def kl_step(run: RunData) -> Figure | None:
    measured = run.series("policy/approx_kl")
    # The first update of a batch still has the policy that sampled it: there is only rounding, no curve.
    points = [(step, value if abs(value) > 1e-12 else 0.0) for step, value in measured]
    caption = "How far one step moves the policy: k3 estimate over the batch's tokens, in nats."
    if points and not any(value for _, value in points):
        caption += " With one update a batch it is taken where the policy has not moved yet, so it is 0."
    chart = svg.line_chart(smoothed("KL old → new", points, 0), y_ends=(0.0,))
    return figure("KL of old to new policy", caption, chart)


def kl_initial(run: RunData) -> Figure | None:
    line = svg.Line("KL to initial", thin(run.series("policy/kl_to_initial")), 3, marks=True)
    coefficient = run.setting("algorithm.kl.coefficient") or run.setting("algorithm.kl_coefficient")
    how = "The loss holds it back" if coefficient else "A measurement; not in the loss"
    caption = f"How far training has moved the policy in all, per token, in nats. {how}."
    return figure("KL to the initial policy", caption, svg.line_chart([line], y_ends=(0.0,)))


def entropy(run: RunData) -> Figure | None:
    spread = ranges(run.series("policy/step_entropy_q05"), run.series("policy/step_entropy_q95"))
    bands = [svg.Band("steps, 5% to 95%", spread, 0, 0.15)] if spread else []
    lines = [
        svg.Line("steps, median", thin(run.series("policy/step_entropy_median")), 0),
        svg.Line("tokens, mean", thin(run.series("policy/entropy")), 1),
    ]
    caption = (
        "Exact entropy of the policy over its whole vocabulary, in nats: of single tokens, and as mean over each "
        "step's own tokens (what EMPG reads)."
    )
    return figure("Entropy", caption, svg.line_chart(lines, bands, y_ends=(0.0,)))


def entropy_change(run: RunData) -> Figure | None:
    """Deciles of step entropy in the first batches beside the same deciles in the last."""
    if len(run.steps) < 2:
        return None
    window = max(1, min(5, len(run.steps) // 4))
    first, last = (_deciles(batches) for batches in (run.steps[:window], run.steps[-window:]))
    names = ["surest", *(str(n) for n in range(2, DECILES)), "unsure"]
    rows = list(zip(names, first, last, strict=True))
    batches = "batch" if window == 1 else f"{window} batches"
    caption = (
        f"Steps of the first {batches}, sorted by entropy into ten equal bins, and the same for the last "
        f"{batches}; each mark is a bin's mean. It compares distributions: no single step is followed, and the "
        "agent visits other states as it learns."
    )
    chart = svg.range_chart(
        rows, before=f"first {batches}", after=f"last {batches}", x_label="decile of step entropy", y_label="nats"
    )
    return figure("Step entropy by bin, first and last", caption, chart)


def _deciles(batches: Sequence[dict[str, list[float]]]) -> list[float]:
    """Means of the ten equal bins of the steps' entropies in ascending order."""
    ordered = sorted(value for batch in batches for value in batch["step_entropies"] if value is not None)
    means = []
    for place in range(DECILES):
        start, end = len(ordered) * place // DECILES, len(ordered) * (place + 1) // DECILES
        inside = ordered[start:end] or [quantile(ordered, (place + 0.5) / DECILES)]
        means.append(sum(inside) / len(inside))
    return means


def advantage_entropy(run: RunData) -> Figure | None:
    points = _last_steps(run)
    clouds = [
        svg.Dots("trajectory advantage above 0", [(h, final) for h, final, whole in points if whole > 0], 0),
        svg.Dots("below 0", [(h, final) for h, final, whole in points if whole < 0], 1),
        svg.Dots("0", [(h, final) for h, final, whole in points if whole == 0], 4),
    ]
    caption = "One dot a step of the last batches: the surer the step, the more of the outcome it is given."
    if part(run, "modulation")["name"] == "none":
        caption = "One dot a step of the last batches. Without modulation a step's entropy changes nothing."
    chart = svg.scatter_chart(clouds, x_label="step entropy (nats)", y_label="final advantage")
    return figure("Advantage against step entropy", caption, chart)


def advantage_advantage(run: RunData) -> Figure | None:
    points = sorted(_last_steps(run))
    thirds = [points[len(points) * n // 3 : len(points) * (n + 1) // 3] for n in range(3)]
    names = ("surest third of steps", "middle third", "least sure third")
    clouds = [
        svg.Dots(name, [(whole, final) for _, final, whole in third], 10 + place)
        for place, (name, third) in enumerate(zip(names, thirds, strict=True))
    ]
    caption = (
        "The same steps: what the trajectory earned and what the step was given. On the diagonal, nothing changed."
    )
    chart = svg.scatter_chart(clouds, x_label="trajectory advantage", y_label="final advantage", diagonal=True)
    return figure("Final against trajectory advantage", caption, chart)


def _last_steps(run: RunData) -> list[tuple[float, float, float]]:
    """(entropy, final advantage, trajectory advantage) of the newest steps, at most `SCATTER_POINTS`."""
    points: list[tuple[float, float, float]] = []
    for batch in reversed(run.steps):
        columns = (batch["step_entropies"], batch["step_advantages"], batch["trajectory_advantages"])
        points += [row for row in zip(*columns, strict=False) if None not in row]
        if len(points) >= SCATTER_POINTS:
            break
    return points[:SCATTER_POINTS]


def time_per_phase(run: RunData) -> Figure | None:
    named = {phase: dict(run.series(f"time/{phase}")) for phase in PHASES}
    used = [phase for phase in PHASES if any(named[phase].values())]
    steps = sorted({step for phase in used for step in named[phase]})
    columns = [thin([(step, named[phase].get(step, 0.0)) for step in steps], most=120) for phase in used]
    rows = [(group[0][0], [value for _, value in group]) for group in zip(*columns, strict=True)]
    return figure("Time of a step", "Seconds of wall-clock time by phase.", svg.stacked_chart(used, rows))


def throughput(run: RunData) -> Figure | None:
    lines = smoothed("tokens/s", run.series("tokens_per_second"), 2)
    return figure("Tokens a second", "", svg.line_chart(lines, y_ends=(0.0,)))


def idle_shares(run: RunData) -> Figure | None:
    lines = smoothed("trainer", run.series("trainer/idle_share"), 0)
    lines += smoothed("engines", run.series("engine/idle_share_mean"), 1)
    lines += smoothed("the idlest engine", run.series("engine/idle_share_worst"), 2)
    caption = (
        "Of the trainer, the share of a step that it waited for the batch; of an engine, that in which it had no "
        "request."
    )
    return figure("Who waits", caption, svg.line_chart(lines, form=svg.percent, y_ends=(0.0, 1.0)))


def engine_speed(run: RunData) -> Figure | None:
    lines = smoothed("mean of the engines", run.series("engine/tokens_per_second_mean"), 0)
    lines += smoothed("the slowest engine", run.series("engine/tokens_per_second_worst"), 1)
    caption = "Tokens that an engine sampled per second of the rollout, by its own count."
    return figure("Speed of an engine", caption, svg.line_chart(lines, y_ends=(0.0,)))


@dataclass(frozen=True)
class Quiet:
    """A small chart of what should stay quiet."""

    title: str
    lines: tuple[tuple[str, str], ...]
    """Metrics with their labels."""
    form: svg.Format = svg.number
    caption: str = ""


HEALTH = (
    Quiet("Gradient norm", (("policy/grad_norm", "norm"),)),
    Quiet(
        "Clipped tokens",
        (("policy/clip_fraction", "share"),),
        svg.percent,
        "Look for less than about 20%; the narrow clips of whole sequences (gspo, sampo) cut more.",
    ),
    Quiet(
        "Ratio of new to old probability",
        (("policy/ratio", "mean"),),
        caption="Look for a mean near 1; far from it the update left its batch behind.",
    ),
    Quiet(
        "Engine to actor log-prob gap",
        (("policy/logprob_gap_mean", "mean"), ("policy/logprob_gap_max", "largest")),
    ),
    Quiet(
        "Weight of the correction",
        (("correction/mean_weight", "mean"),),
        caption="Mean factor of a token's loss. Look for 1; below it the batch counts for less than it seems.",
    ),
    Quiet(
        "What the correction changed",
        (
            ("correction/truncated_share", "tokens held at the cap"),
            ("correction/rejected_tokens", "tokens rejected"),
            ("correction/rejected_episodes", "episodes rejected"),
        ),
        svg.percent,
        "Look for growth: it is drift between engines and actor.",
    ),
    Quiet(
        "Turns outside EPO's band",
        (("epo/outside_share", "before the update"), ("policy/epo_outside", "tokens, during it")),
        svg.percent,
        "Look for a fall to 0: there the smoothing works.",
    ),
    Quiet(
        "Slowest episode by the median",
        (("rollout/tail_ratio", "ratio"),),
        caption="Look for a value near 1; the timeline shows what the slowest ones did.",
    ),
    Quiet("Requests that wait", (("engine/waiting_mean", "mean"), ("engine/waiting_worst", "most"))),
    Quiet(
        "Time to the first token",
        (("engine/first_token_seconds_mean", "mean"), ("engine/first_token_seconds_q95", "95% are faster")),
        svg.seconds,
    ),
    Quiet("Prefix-cache hits", (("engine/cache_hit_share_mean", "share"),), svg.percent),
    Quiet("Learning rate", (("policy/lr", "lr"),)),
    Quiet("Turns an episode", (("train/turns", "turns"),)),
    Quiet("Tokens an episode", (("train/tokens_per_episode", "tokens"),)),
    Quiet(
        "Groups",
        (
            ("train/groups_kept", "kept"),
            ("train/groups_dropped_equal", "equal rewards"),
            ("train/groups_dropped_errors", "errors"),
        ),
    ),
    Quiet(
        "Episodes that went wrong", (("train/episodes_error", "error"), ("train/episodes_truncated", "truncated"))
    ),
    Quiet(
        "Malformed actions, token drift",
        (("train/malformed_actions", "malformed"), ("train/token_drift", "drift")),
    ),
)


def health(run: RunData) -> list[Figure | None]:
    """Small charts of what should stay quiet."""
    shown = []
    for quiet in HEALTH:
        lines = [
            svg.Line(label, thin(run.series(name)), colour) for colour, (name, label) in enumerate(quiet.lines)
        ]
        chart = svg.line_chart(lines, form=quiet.form, y_ends=(0.0,), size=svg.SMALL)
        shown.append(figure(quiet.title, quiet.caption, chart))
    return shown
