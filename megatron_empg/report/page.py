"""Makes the report's page of a run and writes it. What stands where is said by the template `page.html.j2`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megatron_empg.common.files import put_text
from megatron_empg.report import figures, paper_figures, time_figures
from megatron_empg.report.chart import Chart
from megatron_empg.report.data import RunData, part, read_run
from megatron_empg.report.episode import chosen
from megatron_empg.report.health import health
from megatron_empg.report.templates import render
from megatron_empg.report.tiles import lead, tiles
from megatron_empg.report.timeline import timeline_chart
from megatron_empg.run.folder import RunFolder

ChartFunction = Callable[[RunData], Chart | None]

SECTIONS: dict[str, Sequence[ChartFunction]] = {
    "learning": (figures.evaluation, figures.training),
    "warm_up": (figures.warm_up_loss, figures.sure_tokens),
    "policy": (figures.kl_step, figures.kl_initial, figures.entropy, figures.entropy_change),
    "advantages": (
        figures.advantage_entropy,
        figures.advantage_advantage,
        paper_figures.entropy_spread,
        paper_figures.scale_spread,
        paper_figures.bonus_share,
        paper_figures.length_push,
    ),
    "papers": (
        paper_figures.entropy_change_by_bin,
        paper_figures.gradient_by_bin,
        paper_figures.relative_surprisal,
        paper_figures.amplified_and_damped,
    ),
    "time": (
        time_figures.time_per_phase,
        time_figures.throughput,
        time_figures.idle_shares,
        time_figures.engine_speed,
    ),
}
"""The charts of the page, in order, by the name of their section in the template."""


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
    charts = drawn(SECTIONS["learning"], run)
    if not charts:
        raise ValueError(f"{run_folder} has logged no evaluation and no training success yet")
    put_text(path, render("image.svg.j2", chart=charts[0], name=run.name))
    return path


def page(run: RunData) -> str:
    """The whole document."""
    values: dict[str, Any] = {
        "run": run,
        "lead": lead(run),
        "tiles": tiles(run),
        "modulation": part(run, "modulation"),
    }
    values["episodes"] = chosen(run.first_episodes, run.last_episodes)
    for name, chart_functions in SECTIONS.items():
        values[name] = drawn(chart_functions, run)
    values["health"] = health(run)
    values["timeline"] = None
    if run.timeline is not None:
        values["timeline"] = timeline_chart(run.timeline)
    return render("page.html.j2", **values)


def drawn(chart_functions: Sequence[ChartFunction], run: RunData) -> list[Chart]:
    """The charts of which something was logged."""
    charts = [function(run) for function in chart_functions]
    return [chart for chart in charts if chart is not None]
