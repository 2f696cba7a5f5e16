import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from megatron_empg.common.jsonl import append_line, read_lines
from megatron_empg.report import figures
from megatron_empg.report.chart import svg
from megatron_empg.report.data import RunData, part, read_run
from megatron_empg.report.lines import Line, line_chart
from megatron_empg.report.look import COLOURS
from megatron_empg.report.page import write_learning_curve, write_report
from megatron_empg.report.points import smooth, thin
from megatron_empg.report.templates import render
from megatron_empg.report.tiles import number
from megatron_empg.run.episode_log import write_episodes
from megatron_empg.run.episode_text import EpisodeRecord, EpisodeText, TurnNumbers, TurnText
from megatron_empg.run.folder import RunFolder
from tests.unit.report.demo_run import write_demo

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Balanced(HTMLParser):
    """Fails on a tag closed out of order; collects text, tag counts and everything loaded from elsewhere."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.labels: list[str | None] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.note(tag, dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.note(tag, dict(attrs))

    def note(self, tag: str, attributes: dict[str, str | None]) -> None:
        for name in attributes.keys() & {"src", "href", "srcset"}:
            value = str(attributes[name])
            if not value.startswith("#"):
                self.loads.append(f"{name}={value}")
        if "id" in attributes:
            self.ids.append(str(attributes["id"]))
        if tag == "svg":
            self.labels.append(attributes.get("aria-label"))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


def report_of(folder: RunFolder) -> Balanced:
    return Balanced(write_report(folder.root).read_text())


def run_with(
    metrics: list[dict[str, float]] | None = None, steps: list[dict[str, object]] | None = None
) -> RunData:
    return RunData("run", {}, "", [], metrics or [], steps or [], [], [])


def test_a_whole_run_has_every_figure_and_loads_nothing(tmp_path: Path) -> None:
    page = report_of(write_demo(tmp_path, steps=12))
    for title in (
        "Success on held-out questions",
        "Success in training",
        "KL of old to new policy",
        "KL to the initial policy",
        "Entropy",
        "Turn entropy by bin, first and last",
        "Advantage against turn entropy",
        "Final against trajectory advantage",
        "Gradient scale g",
        "An episode, turn by turn",
        "Time of a step",
        "Who waits",
        "Speed of an engine",
        "Slowest episode by the median",
        "Gradient norm",
    ):
        assert title in page.text
    assert page.loads == []
    assert page.counts["svg"] >= 15
    assert "http" not in (tmp_path / "report.html").read_text()
    assert "script" not in page.counts


def test_charts_are_named_for_screen_readers_and_share_no_id(tmp_path: Path) -> None:
    folder = write_demo(tmp_path, steps=12)
    page = report_of(folder)
    assert len(page.labels) == page.counts["svg"] == len(set(page.labels))
    assert all(label and label in page.text for label in page.labels)
    assert len(page.ids) > 20
    assert len(page.ids) == len(set(page.ids))
    text = folder.report.read_text()
    assert set(re.findall(r'(?:href="|url\()#(\w+)', text)) == set(page.ids)


def test_the_same_run_has_the_same_page_to_the_byte(tmp_path: Path) -> None:
    folder = write_demo(tmp_path, steps=3)
    first = write_report(folder.root).read_bytes()
    assert write_report(folder.root).read_bytes() == first


def test_colours_can_be_told_apart_in_the_light() -> None:
    assert len({colour.light for colour in COLOURS.values()}) == len(COLOURS)


def test_a_vertical_axis_holds_its_ends_and_zeros_are_not_below_it() -> None:
    def axis(values: list[float], *ends: float) -> tuple[float, float]:
        points = list(enumerate(values))
        chart = line_chart("t", "", [Line("a", points)], y_ends=ends)
        assert chart is not None
        return chart.figure.axes[0].get_ylim()

    assert axis([0.013, 0.297], 0.0) == pytest.approx((0.0, 0.3))
    assert axis([0.2, 0.4], 0.0, 1.0) == (0.0, 1.0)
    assert axis([0.0, 0.0], 0.0) == (0.0, 1.0)
    low, high = axis([5.0, 6.0])
    assert 4 < low < high < 7


def test_names_with_letters_of_markup_and_of_other_fonts_are_text(recwarn: pytest.WarningsRecorder) -> None:
    chart = line_chart("<&>", "", [Line("<script> $x$ 中", [(1, 1.0)]), Line("b", [(1, 2.0)])])
    assert chart is not None
    root = ElementTree.fromstring(svg(chart))
    assert root.attrib["aria-label"] == "<&>"
    assert "<script> $x$ 中" in list(root.itertext())
    assert len(recwarn) == 0


def test_what_does_not_draw_loads_no_library_that_does() -> None:
    program = (
        "import sys, megatron_empg.launch.local, megatron_empg.report.table.page\n"
        "print([name for name in ('matplotlib', 'jinja2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]"]


def test_a_run_without_modulation_and_evaluation(tmp_path: Path) -> None:
    page = report_of(write_demo(tmp_path, steps=5, planned=40, modulated=False, evaluated=False))
    assert "held-out" not in page.text
    assert "Gradient scale g" not in page.text
    assert "Without modulation" in page.text
    assert "so far" in page.text


def test_one_step(tmp_path: Path) -> None:
    page = report_of(write_demo(tmp_path, steps=1, planned=40))
    assert "at the first evaluation" in page.text
    assert "Turn entropy by bin" not in page.text


def test_an_empty_folder_and_none(tmp_path: Path) -> None:
    page = report_of(RunFolder(tmp_path))
    assert "No step has finished yet." in page.text
    assert "svg" not in page.counts
    with pytest.raises(FileNotFoundError, match="no run folder at"):
        write_report(tmp_path / "absent")


def test_a_run_killed_while_writing(tmp_path: Path) -> None:
    folder = write_demo(tmp_path, steps=3)
    for path in (folder.metrics, folder.steps, folder.episodes / "step_000003.jsonl"):
        path.write_bytes(path.read_bytes()[:-25])
    append_line(folder.metrics, {"step": 4, "policy/loss": None, "train/success": None})
    folder.versions.write_text("{")
    folder.recipe.write_text("a: [")
    assert "Success in training" in report_of(folder).text


@pytest.mark.parametrize("value", ["NaN", "1e308", "9" * 401, '"x"', "[1]", "{}", "true"])
def test_what_should_be_a_number_and_is_not_is_left_out_of_the_page(tmp_path: Path, value: str) -> None:
    """In every file that the page is made of."""
    folder = write_demo(tmp_path, steps=3)
    lines = {
        folder.metrics: ["step", "time/step", "train/success", "eval/test_id/sampled_questions"],
        folder.steps: ["step_entropies", "step_advantages"],
        folder.episodes / "step_000003.jsonl": ["reward", "advantage"],
    }
    for path, names in lines.items():
        for name in names:
            with path.open("a", encoding="utf-8") as file:
                file.write(changed_line(path, name, value))
    page = report_of(folder)
    for title in ("Success in training", "Final against trajectory advantage", "An episode, turn by turn"):
        assert title in page.text


def changed_line(path: Path, name: str, value: str) -> str:
    """The file's last line with this as its `name`."""
    record = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    return json.dumps({**record, name: "@"}).replace('"@"', value) + "\n"


def test_a_run_of_thousands_of_steps_is_a_page_of_two_megabytes_at_most(tmp_path: Path) -> None:
    folder = write_demo(tmp_path, steps=3)
    last = read_lines(folder.metrics)[-1]
    lines = [json.dumps({**last, "step": step}) for step in range(4, 5001)]
    with folder.metrics.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    assert len(write_report(folder.root).read_bytes()) <= 2_000_000


def test_texts_of_100_kb_are_shown_whole(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).open("")
    long = "<b> &" * 20_000
    played = EpisodeText("task", long, "success", [TurnText(long, long)])
    numbers = TurnNumbers(entropy=0.5, advantage=1.0, tokens=9)
    write_episodes(folder, 1, [EpisodeRecord(1, played, 1.0, 1.0, [numbers])])
    assert report_of(folder).text.count("<b> &") >= 3 * 20_000 - 1


def test_text_of_the_agent_is_escaped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).open("")
    text = '<think>a & b</think></pre></div><script>alert("x")</script>'
    played = EpisodeText("task", text, text, [TurnText(text, text * 20)])
    numbers = TurnNumbers(entropy=0.5, advantage=1.0, tokens=9)
    write_episodes(folder, 1, [EpisodeRecord(1, played, 1.0, 1.0, [numbers])])
    page = report_of(folder)
    assert "script" not in page.counts
    assert text in page.text


def test_an_annotated_turn_shows_its_numbers() -> None:
    turn = {
        "text": "t",
        "entropy": 0.4126,
        "h_norm": 0.31,
        "g": 1.12,
        "bonus": 0.081,
        "advantage": -0.9,
        "tokens": 7,
    }
    shown = render("episode.html.j2", episode={"question": "q", "advantage": -1.0, "turns": [turn]})
    for number_of_turn in ("0.413", "0.31", "1.12", "+0.081", "-0.900", "trajectory advantage -1.000"):
        assert number_of_turn in Balanced(shown).text
    assert "--h:0.557" in shown
    assert "left:5.0%;width:45.0%" in shown, "the bar goes left from the middle, by nine tenths of the longest"


def test_a_turn_without_numbers_has_neither_bar_nor_names_of_them() -> None:
    shown = render("episode.html.j2", episode={"turns": [{"text": "t"}]})
    assert "advantage" not in shown
    assert "<dt>" not in shown


def test_without_h_norm_the_tint_is_the_place_within_the_episode() -> None:
    turns = [{"text": "", "entropy": entropy} for entropy in (0.2, 0.6, 1.0)]
    page = render("episode.html.j2", episode={"turns": turns})
    assert [f"--h:{tint}" in page for tint in ("0.000", "0.707", "1.000")] == [True] * 3


def test_deciles_compare_the_first_with_the_last_batches() -> None:
    first = [float(n) for n in range(100, 0, -1)]
    run = run_with(steps=[{"step_entropies": first}, {"step_entropies": [value / 2 for value in first]}])
    chart = figures.entropy_change(run)
    assert chart is not None
    before, after = (list(line.get_ydata()) for line in chart.figure.axes[0].lines)
    assert before == pytest.approx([5.5 + 10 * place for place in range(10)])
    assert after == pytest.approx([2.75 + 5 * place for place in range(10)])


def test_fewer_steps_than_bins() -> None:
    run = run_with(steps=[{"step_entropies": [0.1]}, {"step_entropies": [0.1, 0.4, 0.2]}])
    assert figures.entropy_change(run) is not None


def test_the_interval_of_sampled_success_by_hand() -> None:
    # 40 of 100: centre (0.4 + 1.92/100) / (1 + 3.84/100) = 0.4037, half width 0.0942.
    asked = {"eval/test_id/sampled": 0.4, "eval/test_id/sampled_questions": 100}
    nothing = {"eval/test_id/sampled": 0.0, "eval/test_id/sampled_questions": 50}
    unknown = {"eval/test_id/sampled": 0.5}
    run = run_with([{"step": 1, **asked}, {"step": 2, **unknown}, {"step": 3, **nothing}])
    first, last = figures.intervals(run, "test_id")
    assert first == (1, pytest.approx(0.3094, abs=2e-4), pytest.approx(0.4980, abs=2e-4))
    assert last[:2] == (3, 0.0)


def test_few_questions_are_said_to_tell_little() -> None:
    def caption(questions: int) -> str:
        asked = {"eval/test_id/sampled": 0.4, "eval/test_id/sampled_questions": questions}
        figure = figures.evaluation(run_with([{"step": 1, **asked}, {"step": 2, **asked}]))
        assert figure is not None
        return figure.caption

    assert "60 questions tell a share of 50% to ± 12 points (95% interval) each time." in caption(60)
    assert "±" not in caption(500)


@pytest.mark.parametrize("value", [0.0, 3e-4, -2.0, 1e9])
def test_a_constant_series_can_be_drawn(value: float) -> None:
    run = run_with([{"step": step, "policy/approx_kl": value} for step in range(1, 4)])
    figure = figures.kl_step(run)
    assert figure is not None
    drawing = svg(figure)
    assert "nan" not in drawing
    ElementTree.fromstring(drawing)


def test_rounding_is_not_drawn_as_a_curve() -> None:
    figure = figures.kl_step(run_with([{"step": n, "policy/approx_kl": n * 1e-17} for n in range(3)]))
    assert figure is not None
    assert "has not moved yet" in figure.caption
    assert set(figure.figure.axes[0].lines[0].get_ydata()) == {0.0}


def test_a_supervised_warm_up_shows_its_loss_and_no_episodes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).open("sft: {batch_size: 8}\nrun: {steps: 3}\n")
    for step in range(1, 4):
        append_line(folder.metrics, {"step": step, "policy/loss": 1.0 / step, "policy/correct_surely": 0.5})
    page = report_of(folder)
    assert "Sure tokens" in page.text
    assert "An episode, turn by turn" not in page.text


def test_numbers_are_short() -> None:
    assert [number(value) for value in (0, 0.25, 1234.5, 3e-5)] == ["0", "0.25", "1,234", "3e-05"]


def test_thinning_keeps_the_mean_and_smoothing_the_length() -> None:
    points = [(float(n), float(n % 2)) for n in range(1000)]
    thinned = thin(points, most=300)
    assert len(thinned) == 250
    assert sum(y for _, y in thinned) / 250 == 0.5
    assert len(smooth(points, 5)) == 1000
    assert smooth([(0, 1.0), (1, 2.0), (2, 6.0)], 3) == [(0, 1.0), (1, 3.0), (2, 6.0)]


def test_learning_curve_is_an_image_of_its_own(tmp_path: Path) -> None:
    folder = write_demo(tmp_path, steps=12)
    path = write_learning_curve(folder.root, tmp_path / "curve.svg")
    drawing = ElementTree.parse(path).getroot()
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    assert "out of distribution, greedy" in path.read_text()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no evaluation"):
        write_learning_curve(tmp_path / "empty", tmp_path / "none.svg")


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        ({"modulation": {"name": "empg", "zeta": 0.2}}, {"name": "empg", "zeta": 0.2}),
        ({"modulation": "none"}, {"name": "none"}),
        ({"modulation": "empg", "empg": {"zeta": 0.2}}, {"name": "empg", "zeta": 0.2}),
        ({}, {"name": ""}),
    ],
)
def test_a_part_of_the_algorithm_is_found_in_new_recipes_and_old(
    algorithm: dict[str, object], expected: dict[str, object]
) -> None:
    run = RunData("run", {"algorithm": algorithm}, "", [], [], [], [], [])
    assert part(run, "modulation") == expected


def test_reading_a_run_gives_what_was_logged(tmp_path: Path) -> None:
    run = read_run(write_demo(tmp_path, steps=3))
    assert [step for step, _ in run.series("train/success")] == [1, 2, 3]
    assert run.setting("algorithm.modulation.zeta") == 0.1
    assert run.setting("algorithm.nothing", "x") == "x"
    assert run.first_episodes[0]["step"] == 1
    assert run.last_episodes[0]["step"] == 3
