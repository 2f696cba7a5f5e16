"""Puts the report's page together and writes it."""

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_empg.common.files import put_text
from megatron_empg.report import figures, paper_figures, svg
from megatron_empg.report.data import RunData, part, read_run
from megatron_empg.report.episode import choose, episode_html
from megatron_empg.report.figure import Figure
from megatron_empg.report.style import CHART, COLOURS, EPISODE, PAGE, SCRIPT
from megatron_empg.report.timeline import timeline_figure
from megatron_empg.run.folder import RunFolder
from megatron_empg.run.progress import duration

LAST_VALUES = (
    ("policy/kl_to_initial", "KL to the initial policy", "nats a token"),
    ("tokens_per_second", "tokens a second", "in the last step"),
)


def write_report(run_folder: Path | str, timeline_step: int | None = None) -> Path:
    """Write ``report.html`` from what the run has logged so far; also for a run that goes on or broke off.

    `timeline_step`: whose timeline it draws; the last one's by default. Returns its path. Raises
    FileNotFoundError when there is no such folder, and NoTimelineError for a step that has no timeline.
    """
    folder = RunFolder(run_folder)
    put_text(folder.report, page(read_run(folder, timeline_step)))
    return folder.report


def write_learning_curve(run_folder: Path | str, path: Path) -> Path:
    """Write the evaluation curve (the training curve where nothing was evaluated) as one SVG image, e.g. for a
    README. Raises ValueError when the run has logged neither.
    """
    run = read_run(RunFolder(run_folder))
    figure = figures.evaluation(run) or figures.training(run)
    if figure is None:
        raise ValueError(f"{run_folder} has logged no evaluation and no training success yet")
    put_text(path, standalone(figure, run.name))
    return path


def page(run: RunData) -> str:
    """The whole document."""
    supervised = run.setting("sft") is not None
    sections = [
        _section(
            "Learning",
            "",
            [figures.evaluation(run), figures.training(run), *figures.imitation(run)],
            "No step has finished yet.",
        ),
        _section(
            "How the policy changes",
            "",
            [figures.kl_step(run), figures.kl_initial(run), figures.entropy(run), figures.entropy_change(run)],
            "Nothing measured yet.",
        ),
        *([] if supervised else [_advantages(run), _measured_by_papers(run), _episodes(run)]),
        _time(run),
        _section("Health", "What should stay quiet.", figures.health(run), "Nothing measured yet.", small=True),
        _provenance(run),
    ]
    title = html.escape(run.name)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{COLOURS}{PAGE}{CHART}{EPISODE}</style></head><body><main>"
        f'<h1>{title}</h1><p class="lead">{html.escape(_lead(run))}</p>{_tiles(run)}{"".join(sections)}'
        f"</main><script>{SCRIPT}</script></body></html>\n"
    )


def _time(run: RunData) -> str:
    shown = [
        figures.time_per_phase(run),
        figures.throughput(run),
        figures.idle_shares(run),
        figures.engine_speed(run),
    ]
    section = _section("Time", "", shown, "No step has finished yet.")
    if run.timeline is None:
        return section
    return f'{section}<div class="wide">{_card(timeline_figure(run.timeline))}</div>'


def _lead(run: RunData) -> str:
    names = [run.setting("algorithm.name", ""), part(run, "modulation")["name"], part(run, "regularizer")["name"]]
    chosen = [str(name).upper() for name in names if name and name != "none"]
    parts = [
        " + ".join(chosen) if names[0] else "",
        str(run.setting("environment.name", "")),
        str(run.setting("model.path", "")),
    ]
    if run.setting("algorithm.shuffle_rewards"):
        parts.append("control: rewards shuffled")
    return " · ".join(said for said in parts if said)


def _advantages(run: RunData) -> str:
    shown = [
        figures.advantage_entropy(run),
        figures.advantage_advantage(run),
        paper_figures.entropy_spread(run),
        paper_figures.scale_spread(run),
        paper_figures.bonus_share(run),
        paper_figures.length_push(run),
    ]
    missing = "No batch has been trained on yet."
    return _section("From one reward to step advantages", _modulation_lead(run), shown, missing)


def _measured_by_papers(run: RunData) -> str:
    """Nothing at all where nothing of it was logged."""
    shown = [
        paper_figures.entropy_change_by_bin(run),
        paper_figures.gradient_by_bin(run),
        paper_figures.relative_surprisal(run),
        paper_figures.amplified_and_damped(run),
    ]
    if not any(shown):
        return ""
    return _section(
        "What the papers measure", "Under each figure, what to look for and where it is from.", shown, ""
    )


def _modulation_lead(run: RunData) -> str:
    modulation = part(run, "modulation")
    if modulation["name"] != "empg":
        return ""
    k, k_f, zeta = (modulation.get(name) for name in ("k", "k_f", "zeta"))
    centre = ", centred over the batch" if modulation.get("center") else ""
    return (
        f"A_step = A · g(H) + zeta · f(H of the next step){centre}; g(H) = exp(−{k} H_norm) / mean, "
        f"f(H) = exp(−{k_f} H_norm), zeta = {zeta}."
    )


def _tiles(run: RunData) -> str:
    tiles = []
    for split, label in figures.SPLITS:
        for decoding in ("sampled", "greedy"):
            points = run.series(f"eval/{split}/{decoding}")
            if points:
                tiles.append(_change_tile(f"{label}, {decoding}", [value for _, value in points]))
    success = run.series("train/success")
    if len(success) > 1 and not tiles:
        window = min(5, len(success) // 2)
        first, last = (sum(y for _, y in part) / window for part in (success[:window], success[-window:]))
        tiles.append(_change_tile("success in training", [first, last]))
    if run.metrics:
        done, planned = run.metrics[-1]["step"], run.setting("run.steps")
        tiles.append(_tile("steps", f"{done:,}" + (f" / {planned:,}" if planned else ""), _state(done, planned)))
    durations = [value for _, value in run.series("time/step")]
    if durations:
        about = f"{svg.seconds(sum(durations) / len(durations))} a step"
        tiles.append(_tile("time of all steps", duration(sum(durations)), about))
    for name, label, about in LAST_VALUES:
        points = run.series(name)
        if points:
            tiles.append(_tile(label, svg.number(points[-1][1]), about))
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _state(done: int, planned: int | None) -> str:
    return "" if not planned else "finished" if done >= planned else "so far"


def _change_tile(label: str, rates: Sequence[float]) -> str:
    """The last rate, and how far it is from the first."""
    if len(rates) < 2:
        return _tile(label, f"{rates[0]:.1%}", "at the first evaluation")
    points = 100 * (rates[-1] - rates[0])
    direction = "up" if points > 0.05 else "down" if points < -0.05 else ""
    return _tile(label, f"{rates[-1]:.1%}", f'<b class="{direction}">{points:+.1f} points</b> from {rates[0]:.1%}')


def _tile(label: str, value: str, about: str) -> str:
    return f'<div class="tile"><span>{html.escape(label)}</span><b>{html.escape(value)}</b><em>{about}</em></div>'


def _section(title: str, lead: str, shown: Sequence[Figure | None], missing: str, *, small: bool = False) -> str:
    cards = "".join(_card(figure) for figure in shown if figure is not None)
    body = f'<div class="cards{" small" if small else ""}">{cards}</div>' if cards else _nothing(missing)
    return f"<h2>{html.escape(title)}</h2><p>{html.escape(lead)}</p>{body}"


def _card(figure: Figure) -> str:
    caption = f"<p>{html.escape(figure.caption)}</p>" if figure.caption else ""
    return f'<div class="card"><h3>{html.escape(figure.title)}</h3>{figure.chart.html()}{caption}</div>'


def _nothing(message: str) -> str:
    return f'<div class="none">{html.escape(message)}</div>'


def _episodes(run: RunData) -> str:
    lead = (
        "<h2>An episode, step by step</h2><p>The agent's own text, tinted by the step's entropy: sure"
        '<span class="scale"></span>unsure. The bar is the final advantage, its tick the trajectory\'s.</p>'
    )
    chosen = [(episode, "") for success in (True, False) if (episode := choose(run.last_episodes, success))]
    early = choose(run.first_episodes, False) or choose(run.first_episodes, True)
    if not chosen:
        return lead + _nothing("No episode has been logged yet.")
    shown = [lead, episode_html(chosen[0][0])]
    rest: list[tuple[str, Any]] = [("Of the same step: one that failed", episode) for episode, _ in chosen[1:]]
    if early:
        rest.append(("For comparison: one of the first logged step", early))
    for name, episode in rest:
        shown.append(f'<details class="more"><summary>{name}</summary>{episode_html(episode)}</details>')
    return "".join(shown)


def _provenance(run: RunData) -> str:
    rows = ""
    if run.starts:
        last = run.starts[-1]
        entries = [(key, value) for key, value in last.items() if value is not None and key != "changed"]
        entries += [
            (f"changed after step {start.get('step')}", _changes(start))
            for start in run.starts
            if start.get("changed")
        ]
        if len(run.starts) > 1:
            times = ", ".join(str(start.get("time")) for start in run.starts)
            entries.append((f"{len(run.starts)} starts", times))
        rows = "".join(
            f"<tr><td>{html.escape(str(key))}</td><td>{html.escape(str(value))}</td></tr>"
            for key, value in entries
        )
    recipe = html.escape(run.recipe_text)
    return (
        '<h2>What ran</h2><p></p><div class="card"><details><summary>Versions</summary>'
        f"<table>{rows}</table></details>"
        f"<details><summary>Resolved recipe</summary><pre>{recipe}</pre></details></div>"
    )


def _changes(start: Mapping[str, Any]) -> str:
    """What one start has changed: ``actor.optimizer.lr 1e-06 to 2e-06``."""
    changed = start["changed"].items()
    return ", ".join(f"{key} {values.get('from')} to {values.get('to')}" for key, values in changed)


def standalone(figure: Figure, name: str) -> str:
    """A figure as an SVG document of its own: title and legend drawn inside it."""
    chart = figure.chart
    top = 34 + 18 * math.ceil(len(chart.legend) / 2)
    keys = "".join(
        f'<g transform="translate({52 + 250 * (place % 2)} {40 + 18 * (place // 2)})">'
        f'<line x2="22" stroke="{svg.palette(colour)}" class="line {kind}"/>'
        f'<text x="29" dy="0.32em" class="title">{html.escape(label)}</text></g>'
        for place, (label, colour, kind) in enumerate(chart.legend)
    )
    box = f"0 0 {chart.size.width:.0f} {chart.size.height + top:.0f}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">'
        f"<style>{COLOURS}{CHART}.head{{font-size:15px;font-weight:600;fill:var(--ink)}}</style>"
        f'<title>{html.escape(name)}</title><rect width="100%" height="100%" rx="10" fill="var(--card)"/>'
        f'<text x="52" y="22" class="head">{html.escape(figure.title)}</text>{keys}'
        f'<g transform="translate(0 {top})">{chart.content}</g></svg>\n'
    )
