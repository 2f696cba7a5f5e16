"""The page of what was found, and its charts, of the lines alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes

from bench.mechanism.entropies import QUANTILES
from bench.mechanism.findings import Findings, read_findings
from bench.mechanism.products import Estimate
from bench.mechanism.updates import UpdateFindings
from megatron_empg.common.files import put_text
from megatron_empg.report.chart import Chart, Size, blank, finished
from megatron_empg.report.look import MUTED, STYLE
from megatron_empg.report.table.sheet import Sheet
from megatron_empg.report.templates import render

HOW = (
    "Made by `python -m bench.mechanism --report` of [{lines}]({lines}), to which "
    "`python -m bench.mechanism TASK RECIPE` adds a line. Each policy is as it is before training. "
    "[study.md](../study.md) says what is asked, and what was predicted of this.\n\n"
    "An update is the gradient of one batch's loss on fresh episodes, with respect to all parameters. The gain of "
    "an update is how much success grows by a step along it, to first order: its inner product with the gradient "
    "of the success rate, which is estimated from other batches. It is told for a step of given norm, and for one "
    "of Adam's, whose numbers all have the same size; 1 is the plain update of the same base. Signal by noise is "
    "the squared norm of the expected update by the variance of a batch's around it. Brackets: intervals of 95% "
    "by the jackknife, over blocks of 10 batches for updates and over batches for correlations."
)


def write_page(results: Path) -> list[Path]:
    """Write the page and its charts beside the lines. Raises SystemExit where there is none."""
    tasks = read_findings(results)
    if not tasks:
        raise SystemExit(f"{results} has no line yet; python -m bench.mechanism TASK RECIPE adds one")
    page = results.with_suffix(".md")
    written = [page]
    parts = ["# The mechanism", HOW.format(lines=results.name)]
    for found in tasks:
        parts += [f"## {found.task}", _origin(found), _spread(found), _bins(found).markdown()]
        for kind, chart in (("bins", bins_chart(found)), ("gains", gains_chart(found))):
            path = page.with_name(f"{page.stem}-{found.task}-{kind}.svg")
            put_text(path, render("image.svg.j2", chart=chart, name=chart.title))
            written.append(path)
            parts.append(f"![{chart.title}]({path.name})")
        parts += [_correlations(found).markdown()]
        parts += [_updates(found, base).markdown() for base in ("dapo", "grpo")]
        parts.append(_best(found))
    put_text(page, "\n\n".join(parts) + "\n")
    return written


def _origin(found: Findings) -> str:
    words = " ".join([f"`{found.recipe}`", *[f"`{override}`" for override in found.overrides]])
    return (
        f"{words}: {found.batches} batches, {found.episodes:,} episodes, {found.turns:,} turns "
        f"({found.turns_per_episode:.1f} per episode). Success {found.success:.1%}; {found.equal_groups:.0%} of "
        f"the questions have equal rewards throughout. {found.minutes:.0f} minutes of one core for the gradients; "
        f"commit {found.commit}, policy {found.policy[:12]}."
    )


def _spread(found: Findings) -> str:
    spread = found.spread
    marks = [f"{share:.0%} {value:.3f}" for share, value in zip(QUANTILES, spread.quantiles, strict=True)]
    places = ", ".join(f"{value:.3f}" for value in spread.by_place)
    return (
        f"Turn entropy in nats, quantiles: {'; '.join(marks)}. By place in the episode: {places}; of last turns "
        f"{spread.of_last:.3f}. EMPG's g by min-max (k 1): 5% {spread.g_low:.3f}, 95% {spread.g_high:.3f}; "
        f"{spread.g_near_one:.0%} of the turns lie between 0.9 and 1.1."
    )


def _bins(found: Findings) -> Sheet:
    rows = []
    for each in found.bins:
        rows.append(
            [
                f"{each.entropy:.3f}",
                f"{each.turns:.1%}",
                f"{each.success:.1%}",
                f"{each.squared_norm:.3g}",
                f"{each.g:.3f}",
                _percent(each.gain),
                f"{each.noise:.1%}",
                _bracketed(each.signal_by_noise, "{:.2g}"),
            ]
        )
    headings = ["entropy", "turns", "success", "‖gradient‖² per token", "g", "of the gain", "of the noise"]
    return Sheet("Turns by entropy", [*headings, "signal by noise"], rows, texts=frozenset())


def _correlations(found: Findings) -> Sheet:
    of = found.correlations
    within = {
        "turn entropy and success, same state": of.entropy_and_success,
        "clarity of the next turn and success, same state": of.clarity_and_success,
        "the same, same question": of.clarity_and_success_in_question,
        "an episode's sum of clarities and success, same question": of.episode_bonus_and_success,
        "an episode's turns and success, same question": of.turns_and_success,
    }
    rows = [["turn entropy and ‖gradient‖² per token (ranks)", f"{of.norm_and_entropy:.3f}"]]
    rows += [[name, _bracketed(estimate, "{:.3f}")] for name, estimate in within.items()]
    title = f"Correlations ({of.same_state:.0%} of the turns with a next one share their state with another)"
    return Sheet(title, ["of", "correlation"], rows)


def _updates(found: Findings, base: str) -> Sheet:
    rows = []
    for each in found.updates:
        if each.base == base:
            estimates = (each.size, each.cosine, each.expected_cosine, each.signal, each.gain, each.gain_by_adam)
            rows.append([each.name, *[_bracketed(one, "{:.3f}") for one in estimates]])
    headings = [
        "modulation",
        "size",
        "cosine, batch",
        "cosine, expected",
        "signal by noise",
        "gain",
        "gain by Adam",
    ]
    return Sheet(f"Updates over {base.upper()}, by the plain one", headings, rows)


def _best(found: Findings) -> str:
    best = found.best_scaling
    factors = ", ".join(f"{factor:.2f}" for factor in best.factors)
    return (
        f"The scaling of these bins that gains most, from the surest turns to the least sure: {factors}. Its gain "
        f"is {best.gain:.3f} of the plain update's where it was found, {best.gain_elsewhere:.3f} on other batches."
    )


def _bracketed(estimate: Estimate | None, form: str) -> str:
    if estimate is None:
        return "not known"
    value, low, high = (form.format(number) for number in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def _percent(estimate: Estimate) -> str:
    return _bracketed(estimate, "{:.1%}")


def bins_chart(found: Findings) -> Chart:
    """Shares of turns, gain and noise by entropy."""
    series: list[tuple[str, Callable[[int], float], str]] = [
        ("of the turns", lambda number: found.bins[number].turns, MUTED),
        ("of the noise", lambda number: found.bins[number].noise, "C1"),
        ("of the gain in success", lambda number: found.bins[number].gain.value, "C0"),
    ]
    places = list(range(len(found.bins)))
    with rc_context(STYLE):
        figure, axes = blank(x_label="mean turn entropy of the bin, nats", unit="%")
        for label, value, colour in series:
            axes.plot(places, [value(place) for place in places], color=colour, label=label, marker="o")
        gains = [each.gain for each in found.bins]
        axes.fill_between(
            places, [g.low for g in gains], [g.high for g in gains], color="C0", alpha=0.2, linewidth=0
        )
        axes.set_xticks(places, [f"{each.entropy:.2g}" for each in found.bins])
        axes.set_xlim(-0.3, len(places) - 0.7)
        title = f"{found.task}: what turns of an entropy add to the update"
        caption = "Of the plain DAPO update; shaded: interval of 95%."
        return finished(title, caption, figure, (0.0,))


def gains_chart(found: Findings) -> Chart:
    """The gain of each modulation over DAPO, by a step of Adam's."""
    shown = [each for each in found.updates if each.base == "dapo" and each.name != "plain"]
    shown.reverse()
    with rc_context(STYLE):
        figure, axes = blank(Size(560, 24 * len(shown) + 70), x_label="gain, by the plain update's", left=150)
        axes.axvline(1.0, color=MUTED, linestyle=":")
        _draw_gains(axes, shown)
        title = f"{found.task}: gain in success of a step of Adam's, over DAPO"
        caption = "First-order gain by the plain update's, with intervals of 95%."
        return finished(title, caption, figure, (0.5, len(shown) + 0.5))


def _draw_gains(axes: Axes, shown: Sequence[UpdateFindings]) -> None:
    gains = [each.gain_by_adam for each in shown]
    places = list(range(1, len(shown) + 1))  # none at 0, where a line would be drawn
    axes.errorbar(
        [gain.value for gain in gains], places, xerr=[gain.half_width for gain in gains], fmt="o", color="C0"
    )
    axes.set_yticks(places, [each.name for each in shown])
