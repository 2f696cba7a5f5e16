"""`empg table`: which runs make a line, what stands in it, beside it and below it."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_empg.common.files import put_json
from megatron_empg.common.wilson import wilson
from megatron_empg.evaluate.document import FORMAT as EVALUATION_FORMAT
from megatron_empg.evaluate.document import VERSION as EVALUATION_VERSION
from megatron_empg.evaluate.figures import summarise
from megatron_empg.evaluate.questions import SampleOutcome
from megatron_empg.report.table import documents
from megatron_empg.report.table.document import EnvironmentTable, TableDocument, make_document
from megatron_empg.report.table.errors import TableError
from megatron_empg.report.table.page import json_of, text_of
from megatron_empg.report.table.seeds import newcombe
from megatron_empg.run.folder import RunFolder
from tests.support.table_runs import House, identity_of, recipe_of, write_run

SAMPLED = ("test_id", "sampled")
HOUSES = f"{House.__module__}:{House.__name__}"
HOUSE = f"environment={{name: '{HOUSES}'}}"


def seeds(root: Path, *values: float, name: str = "run", **said: Any) -> list[Path]:
    """A run for each value, with seeds from 1 on."""
    folders = []
    for seed, value in enumerate(values, 1):
        recipe = recipe_of(*said.get("overrides", ()), seed=seed, **said.get("chosen", {}))
        folders.append(write_run(root / f"{name}-{seed}", recipe, {"test_id/sampled": value}))
    return folders


def only(document: TableDocument) -> EnvironmentTable:
    (table,) = document.tables
    return table


def told(*paths: Path, paper: Any = None) -> str:
    return " ".join(text_of(make_document(list(paths), paper)).split())


def test_seeds_of_one_recipe_are_one_line_with_their_mean_and_interval(tmp_path: Path) -> None:
    (line,) = only(make_document(seeds(tmp_path, 0.5, 0.6, 0.7), None)).lines
    cell = line.cells[SAMPLED]["all"]
    assert (cell.value, cell.seeds, cell.over) == (pytest.approx(0.6), 3, "seeds")
    assert cell.interval is not None
    assert (cell.interval.low, cell.interval.high) == pytest.approx((0.35159, 0.84841), abs=1e-5)
    assert line.group.seeds == [1, 2, 3]
    assert (line.model, line.group.method.label) == ("Qwen2.5-1.5B-Instruct", "GRPO")


def test_one_seed_has_the_interval_of_its_questions_and_is_marked(tmp_path: Path) -> None:
    folders = seeds(tmp_path, 0.7)
    (line,) = only(make_document(folders, None)).lines
    cell = line.cells[SAMPLED]["all"]
    assert (cell.interval, cell.over) == (wilson(98, 140), "questions")
    assert "70.0 [62.0, 77.0]q" in told(*folders)
    assert "does not cover the luck of training" in told(*folders)


def test_the_papers_line_stands_below_ours_of_the_same_method(tmp_path: Path) -> None:
    runs = [
        *seeds(tmp_path, 0.5, 0.6, 0.7),
        *seeds(tmp_path, 0.6, 0.7, 0.8, name="empg", chosen={"modulation": "empg"}),
    ]
    text = text_of(make_document(runs, "empg"))
    sheet = text.split("\n\n")[0].splitlines()
    assert [line.split()[:2] for line in sheet[3:9]] == [
        ["1", "this"],
        ["EMPG", "Qwen2.5-1.5B-Instruct"],
        ["EMPG", "Qwen2.5-7B-Instruct"],
        ["2", "this"],
        ["EMPG", "Qwen2.5-1.5B-Instruct"],
        ["EMPG", "Qwen2.5-7B-Instruct"],
    ]
    assert sheet[4].endswith("65.6")
    assert sheet[7].endswith("73.7")
    assert "arXiv 2509.09265, Table 1; read 2026-11-26, secondary" in text


def test_kinds_have_the_papers_columns_in_the_papers_order(tmp_path: Path) -> None:
    figures = {
        "test_id/sampled": 0.5,
        "test_id/sampled/pick_two_obj_and_place": 0.2,
        "test_id/sampled/pick_and_place_simple": 0.9,
        "test_id/sampled/dance": 0.1,
    }
    run = write_run(tmp_path / "run", recipe_of(), figures)
    heading = text_of(make_document([run], "gigpo")).splitlines()[1].split()
    assert heading[6:] == ["Pick", "Look", "Clean", "Heat", "Cool", "Pick2", "dance", "all"]
    assert "94.4 ±5.9" in told(run, paper="gigpo")


def test_very_many_kinds_have_a_sheet_of_their_own(tmp_path: Path) -> None:
    figures = {"test_id/sampled": 0.5} | {f"test_id/sampled/kind {number:02}": 0.25 for number in range(30)}
    run = write_run(tmp_path / "run", recipe_of("environment={name: scienceworld}"), figures)
    first, second = text_of(make_document([run], None)).split("\n\n")[:2]
    assert first.splitlines()[1].split()[6:] == ["all"]
    assert second.splitlines()[0] == "scienceworld, test_id, sampled: success in %, by kind and line"
    assert second.splitlines()[3].split() == ["kind", "00", "25.0"]


def test_success_is_the_only_figure_of_all_questions(tmp_path: Path) -> None:
    recipe = recipe_of("environment={name: webshop, max_turns: 15}")
    run = write_run(tmp_path / "run", recipe, {"test_id/sampled": 0.5})
    for paper in ("gigpo", "aem", "arlarena"):
        assert text_of(make_document([run], paper)).splitlines()[1].split()[6:] == ["all"]


def test_runs_that_differ_elsewhere_are_lines_of_their_own_with_the_key_named(tmp_path: Path) -> None:
    runs = [*seeds(tmp_path, 0.5, 0.6), *seeds(tmp_path, 0.7, name="hot", overrides=["rollout.temperature=0.8"])]
    table = only(make_document(runs, None))
    assert [line.group.seeds for line in table.lines] == [[1, 2], [1]]
    assert "2 and 1 differ in rollout.temperature (0.8, 1.0)" in told(*runs)


@pytest.mark.parametrize(
    "override",
    ["evaluation.questions=100", "evaluation.temperature=1.0", "actor.optimizer.lr=1e-6", "run.steps=160"],
)
def test_what_a_continuation_may_change_and_a_result_depends_on_parts_runs(tmp_path: Path, override: str) -> None:
    runs = [
        *seeds(tmp_path, 0.5),
        write_run(tmp_path / "other", recipe_of(override, seed=2), {"test_id/sampled": 0.6}),
    ]
    assert [line.group.seeds for line in only(make_document(runs, None)).lines] == [[1], [2]]
    assert f"differ in {override.partition('=')[0]}" in told(*runs)


@pytest.mark.parametrize("override", ["run.folder=elsewhere", "logging.episodes_per_step=0", "engines.count=4"])
def test_where_and_how_loudly_a_run_was_computed_parts_no_runs(tmp_path: Path, override: str) -> None:
    runs = [
        *seeds(tmp_path, 0.5),
        write_run(tmp_path / "other", recipe_of(override, seed=2), {"test_id/sampled": 0.6}),
    ]
    (line,) = only(make_document(runs, None)).lines
    assert line.group.seeds == [1, 2]


def test_a_model_is_known_by_its_content_where_the_runs_noted_it(tmp_path: Path) -> None:
    here, there = recipe_of(seed=1), recipe_of("model.path=/elsewhere/Qwen2.5-1.5B-Instruct", seed=2)
    runs = [write_run(tmp_path / "a", here, {"test_id/sampled": 0.5})]
    runs.append(write_run(tmp_path / "b", there, {"test_id/sampled": 0.6}))
    model = {"config": "c", "tokenizer": "t", "weights": "w"}
    put_json(RunFolder(runs[0]).identity, identity_of(here, model=model))
    put_json(RunFolder(runs[1]).identity, identity_of(there, model=model))
    assert len(only(make_document(runs, None)).lines) == 1
    put_json(RunFolder(runs[1]).identity, identity_of(there, model={**model, "weights": "others"}))
    assert len(only(make_document(runs, None)).lines) == 2


def test_data_of_another_content_parts_runs(tmp_path: Path) -> None:
    runs = seeds(tmp_path, 0.5, 0.6)
    for number, run in enumerate(runs):
        data = {"data": {"path": "games/manifest.json", "sha256": f"{number}" * 64}}
        put_json(RunFolder(run).identity, identity_of(recipe_of(), data=data))
    assert "differ in content of environment.settings.data (11111111, 00000000)" in told(*runs)


def test_a_default_that_another_release_had_parts_runs(tmp_path: Path) -> None:
    runs = seeds(tmp_path, 0.5, 0.6)
    put_json(RunFolder(runs[1]).identity, {"defaults": {"environment.settings.history_length": 5}})
    assert "2 and 1 differ in environment.settings.history_length (5, 2)" in told(*runs)


def test_a_seed_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    runs = [*seeds(tmp_path, 0.5, 0.6), *seeds(tmp_path, 0.9, name="again")]
    (line,) = only(make_document(runs, None)).lines
    assert line.cells[SAMPLED]["all"].value == pytest.approx(0.55)
    assert f"{tmp_path / 'again-1'} is left out: seed 1 is there already" in told(*runs)


def test_a_run_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    (run,) = seeds(tmp_path, 0.5)
    (line,) = only(make_document([run, run / "."], None)).lines
    assert line.notes == []


def test_a_gain_is_paired_by_seed(tmp_path: Path) -> None:
    runs = [
        *seeds(tmp_path, 0.5, 0.6, 0.7),
        *seeds(tmp_path, 0.55, 0.66, 0.77, 0.99, name="empg", chosen={"modulation": "empg"}),
    ]
    (gain,) = only(make_document(runs, None)).gains
    assert (gain.line, gain.plain, gain.seeds) == (2, 1, [1, 2, 3])
    assert gain.difference == pytest.approx(0.06)
    assert gain.interval is not None
    # The gains are 0.05, 0.06 and 0.07: 4.3027 · 0.01 / √3 to either side.
    assert (gain.interval.low, gain.interval.high) == pytest.approx((0.035159, 0.084841), abs=1e-5)
    assert "2 (GRPO + EMPG) over 1 (GRPO), test_id sampled: +6.0 points [+3.5, +8.5] over seeds 1, 2, 3" in told(
        *runs
    )


def test_a_gain_of_one_seed_has_the_interval_of_the_questions(tmp_path: Path) -> None:
    runs = [*seeds(tmp_path, 0.5), *seeds(tmp_path, 0.6, name="empg", chosen={"modulation": "empg"})]
    (gain,) = only(make_document(runs, None)).gains
    assert gain.interval == newcombe(0.5, wilson(70, 140), 0.6, wilson(84, 140))
    assert "seed 1 alone, over questions" in told(*runs)


def test_a_gain_is_taken_over_a_run_that_is_alike_elsewhere_alone(tmp_path: Path) -> None:
    chosen = {"modulation": "empg"}
    runs = [
        *seeds(tmp_path, 0.5),
        *seeds(tmp_path, 0.6, name="empg", chosen=chosen, overrides=["rollout.group_size=4"]),
    ]
    table = only(make_document(runs, None))
    assert (table.gains, table.without_plain) == ([], [2])
    assert "2 (GRPO + EMPG) has no run of the plain algorithm beside it that is alike elsewhere" in told(*runs)


def test_a_regularizer_is_compared_with_the_plain_algorithm_too(tmp_path: Path) -> None:
    epo = recipe_of("algorithm={name: grpo, modulation: none, regularizer: epo}")
    runs = [*seeds(tmp_path, 0.5), write_run(tmp_path / "epo", epo, {"test_id/sampled": 0.6})]
    table = only(make_document(runs, "epo"))
    assert [(gain.line, gain.plain) for gain in table.gains] == [(2, 1)]
    assert table.lines[1].group.method.label == "GRPO + EPO"


def test_what_is_not_comparable_is_told_by_line(tmp_path: Path) -> None:
    plain = write_run(tmp_path / "a", recipe_of(), {"test_id/sampled": 0.5})
    overrides = (
        "environment={name: alfworld, max_turns: 30, settings: {history_length: all}}",
        "model.path=recipes/miniature/policy",
        "run.steps=24",
        "evaluation.temperature=1.0",
    )
    other = write_run(tmp_path / "b", recipe_of(*overrides, algorithm="dapo"), {"test_id/sampled": 0.5})
    text = told(plain, other, paper="gigpo")
    assert "1, 2: fewer seeds: 1; GiGPO has 3" in text
    assert "2: another model: recipes/miniature/policy; GiGPO has Qwen2.5-1.5B-Instruct, Qwen2.5-7B-Inst" in text
    assert "2: fewer steps: 24; GiGPO trains 150" in text
    assert "2: another temperature: 1; GiGPO evaluates at 0.4" in text
    assert "2: another limit of turns: 30; GiGPO has 50" in text
    assert "2: another history window: the whole conversation; GiGPO shows 2 turns" in text
    assert "all: not read of GiGPO, so perhaps another: number of evaluation questions" in text
    arena = told(plain, paper="arlarena")
    assert "1: another number of evaluation questions: 140; ARLArena asks 128" in arena


def test_an_environment_says_of_itself_what_is_not_comparable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = "megatron_empg.report.table.published.PublishedPapers.of"
    monkeypatch.setattr(published, lambda self, environment, asked: self._setups("alfworld", ["empg"]))
    run = write_run(tmp_path / "run", recipe_of(HOUSE), {"test_id/sampled": 0.5})
    assert "1: generated houses" in told(run)
    real = write_run(
        tmp_path / "real",
        recipe_of(f"environment={{name: '{HOUSES}', settings: {{generated: false}}}}"),
        {"test_id/sampled": 0.5},
    )
    assert "generated houses" not in told(real)


def test_what_an_environment_said_where_the_run_ran_counts(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", recipe_of(), {"test_id/sampled": 0.5})
    put_json(RunFolder(run).identity, identity_of(recipe_of(), caveats=["generated games"]))
    assert "1: generated games" in told(run)


def test_an_environment_of_which_no_paper_tells_has_a_table_all_the_same(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", recipe_of(HOUSE), {"test_id/sampled": 0.5})
    assert "No paper's numbers of tests.support.table_runs:House were asked for that are known." in told(run)


def test_mixed_environments_have_a_table_each(tmp_path: Path) -> None:
    house = write_run(tmp_path / "house", recipe_of(HOUSE), {"test_id/sampled": 0.5})
    document = make_document([*seeds(tmp_path, 0.5), house], None)
    assert [table.environment for table in document.tables] == ["alfworld", "tests.support.table_runs:House"]
    assert [line.group.number for table in document.tables for line in table.lines] == [1, 2]


def test_all_splits_are_shown_where_a_paper_tells_of_them(tmp_path: Path) -> None:
    figures = {"test_id/sampled": 0.5, "test_ood/sampled": 0.3}
    deep = write_run(tmp_path / "deep", recipe_of("environment={name: deep_search}"), figures)
    assert "deep_search, all splits, sampled" in told(deep)
    table = only(make_document([deep], None))
    assert table.lines[0].cells["all", "sampled"]["all"].value == pytest.approx(0.4)
    alf = write_run(tmp_path / "alf", recipe_of(), figures)
    assert "all splits" not in told(alf)


def test_papers_stand_beside_sampled_success_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", recipe_of(), {"test_id/sampled": 0.5, "test_id/greedy": 0.6})
    sampled, greedy = text_of(make_document([run], None)).split("\n\n")[:2]
    assert "EMPG" in sampled
    assert "EMPG" not in greedy


def test_an_unfinished_run_is_a_line_of_its_own_and_says_so(tmp_path: Path) -> None:
    early = write_run(tmp_path / "early", recipe_of(seed=2), {"test_id/sampled": 0.2}, step=50)
    runs = [*seeds(tmp_path, 0.5), early]
    assert len(only(make_document(runs, None)).lines) == 2
    assert "unfinished: its last evaluation is of step 50 of 150" in told(*runs)


def test_runs_that_cannot_be_shown_are_named_with_the_reason(tmp_path: Path) -> None:
    good = seeds(tmp_path, 0.5)
    begun = RunFolder(write_run(tmp_path / "begun", recipe_of(), {"test_id/sampled": 0.5}))
    first = begun.metrics.read_text(encoding="utf-8").splitlines()[0]
    begun.metrics.write_text(first + '\n{"step": 7, "train/reward": 0.1}\n', encoding="utf-8")
    silent = RunFolder(write_run(tmp_path / "silent", recipe_of(), {}))
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "metrics.jsonl").write_text("{}\n", encoding="utf-8")
    old = RunFolder(write_run(tmp_path / "old", recipe_of(), {"test_id/sampled": 0.5}))
    old.recipe.write_text("run: {colour: red}\n", encoding="utf-8")
    warm = RunFolder(write_run(tmp_path / "warm", recipe_of(), {"test_id/sampled": 0.5}))
    sft = Path(__file__).parents[3] / "recipes/miniature_sft.yaml"
    warm.recipe.write_text(sft.read_text(encoding="utf-8"), encoding="utf-8")
    text = told(*good, begun.root, silent.root, bare, old.root, warm.root)
    assert f"{begun.root}: it was evaluated before training alone; 7 of 150 steps are done" in text
    assert f"{silent.root}: it has logged no evaluation" in text
    assert f"{bare}: it has no recipe.yaml" in text
    assert f"{old.root}: its recipe.yaml is none of this release" in text
    assert f"{warm.root}: it is a supervised warm-up" in text
    with pytest.raises(TableError, match="no evaluation to show"):
        make_document([silent.root], None)


def test_a_torn_line_is_passed_over_and_told(tmp_path: Path) -> None:
    (run,) = seeds(tmp_path, 0.5)
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 151, "eval/test_id/sam')
    assert "1: 1 lines of metrics.jsonl could not be read" in told(run)


def test_numbers_that_are_none_are_passed_over(tmp_path: Path) -> None:
    (run,) = seeds(tmp_path, 0.5)
    odd = {
        "step": 160,
        "eval/test_id/sampled": None,
        "eval/test_id/greedy": "0.9",
        "eval/" + "x": 1,
        "eval": True,
    }
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(odd) + "\n" + json.dumps({"step": "seven", "eval/test_id/sampled": 1.0}) + "\n")
    (line,) = only(make_document([run], None)).lines
    assert line.cells[SAMPLED]["all"].value == 0.5


def test_a_place_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="is not a run folder"):
        make_document([tmp_path], None)
    (tmp_path / "junk.json").write_text("{", encoding="utf-8")
    with pytest.raises(TableError, match="not JSON"):
        make_document([tmp_path / "junk.json"], None)
    (tmp_path / "other.json").write_text('{"format": "x"}', encoding="utf-8")
    with pytest.raises(TableError, match="is not an evaluation of this release"):
        make_document([tmp_path / "other.json"], None)


def outcomes(successes: int, questions: int, samples: int = 1) -> list[SampleOutcome]:
    """Of as many questions, the first of which succeed."""
    found = []
    for number in range(questions):
        right = number < successes
        for sample in range(samples):
            end = "success" if right else "failure"
            found.append(
                SampleOutcome(f"q{number}", "test_id", "sampled", "pick_and_place_simple", None, sample, right,
                              end, 10.0 * right, 5, 50, None, "0")
            )  # fmt: skip
    return found


def write_evaluation(
    path: Path, folder: Path, found: list[SampleOutcome], *overrides: str, samples: int = 1
) -> Path:
    """As `empg evaluate --json` writes one policy."""
    from dataclasses import asdict

    policy = {
        "label": folder.name,
        "folder": str(folder),
        "source": str(folder / "policy"),
        "fingerprint": {},
        "figures": list(map(asdict, summarise(found, 0))),
        "outcomes": list(map(asdict, found)),
    }
    document = {
        "format": EVALUATION_FORMAT,
        "version": EVALUATION_VERSION,
        "samples": samples,
        "recipe": recipe_of(*overrides).model_dump(mode="json"),
        "policies": [policy],
    }
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_the_format_of_evaluations_is_the_one_that_they_are_written_in() -> None:
    assert (documents.FORMAT, documents.VERSION) == (EVALUATION_FORMAT, EVALUATION_VERSION)


def test_an_evaluation_of_a_run_is_a_line_of_what_trained_it(tmp_path: Path) -> None:
    recipe = recipe_of(modulation="empg", seed=3)
    run = write_run(tmp_path / "run", recipe, {"test_id/sampled": 0.1})
    found = write_evaluation(tmp_path / "e.json", run, outcomes(30, 128), "evaluation.questions=128")
    (line,) = only(make_document([found], None)).lines
    assert (line.group.method.label, line.group.seeds, line.group.first.step) == ("GRPO + EMPG", [3], 150)
    cells = line.cells[SAMPLED]
    assert (cells["all"].value, cells["all"].interval) == (pytest.approx(30 / 128), wilson(30, 128))
    assert cells["Pick"].interval == wilson(30, 128)


def test_samples_of_an_evaluation_keep_their_own_interval(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", recipe_of(), {"test_id/sampled": 0.1})
    asked = outcomes(30, 128, samples=4)
    found = write_evaluation(tmp_path / "e.json", run, asked, "evaluation.questions=128", samples=4)
    cell = only(make_document([found], None)).lines[0].cells[SAMPLED]["all"]
    assert cell.interval == summarise(asked, 0)[0].all.mean.interval
    assert "differ in evaluation.questions (128, 140), samples (4, 1)" in told(run, found)


def test_a_policy_that_no_run_is_known_of_is_shown_as_given(tmp_path: Path) -> None:
    model = tmp_path / "Qwen2.5-7B-Instruct"
    model.mkdir()
    found = write_evaluation(tmp_path / "e.json", model, outcomes(30, 140))
    table = only(make_document([found, *seeds(tmp_path, 0.5)], None))
    assert [line.group.method.label for line in table.lines] == ["GRPO", "as given"]
    assert table.lines[1].model == "Qwen2.5-7B-Instruct"
    assert (table.gains, table.without_plain) == ([], [])
    assert "2: fewer steps" not in told(found, *seeds(tmp_path, 0.5))


def test_an_evaluation_of_a_checkpoint_is_of_its_step(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", recipe_of(), {"test_id/sampled": 0.1})
    checkpoint = run / "checkpoints/step_000100"
    found = write_evaluation(tmp_path / "e.json", checkpoint, outcomes(30, 140))
    (line,) = only(make_document([found], None)).lines
    assert line.group.first.step == 100
    assert "unfinished: the policy that was evaluated is of step 100 of 150" in told(found)


def test_an_evaluation_with_a_part_missing_names_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", recipe_of(), {"test_id/sampled": 0.1})
    path = write_evaluation(tmp_path / "e.json", run, outcomes(3, 14))
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["policies"][0]["figures"][0]["all"]["mean"]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(TableError, match=r"policies\.0\.figures\.0\.all\.mean: Field required"):
        make_document([path], None)


def test_markdown_escapes_what_would_be_markup(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", recipe_of(), {"test_id/sampled": 0.5, "test_id/sampled/a|b*": 0.5})
    text = text_of(make_document([run], None), markdown=True)
    assert "a\\|b\\*" in text
    assert text.startswith("**alfworld, test\\_id, sampled: success in %**\n\n| # |")
    assert "\n| ---: | :--- | :--- | :--- | ---: | ---: | ---: | ---: |\n" in text


def test_the_json_holds_every_number_and_every_sentence(tmp_path: Path) -> None:
    runs = [
        *seeds(tmp_path, 0.5, 0.6),
        *seeds(tmp_path, 0.55, 0.7, name="empg", chosen={"modulation": "empg"}),
    ]
    found = json.loads(json.dumps(json_of(make_document(runs, "gigpo")), allow_nan=False))
    (environment,) = found["environments"]
    first, second = environment["lines"]
    assert (first["method"], second["modulation"]) == ("GRPO", "empg")
    assert [run["seed"] for run in first["runs"]] == [1, 2]
    assert first["figures"][0]["columns"]["all"]["value"] == pytest.approx(0.55)
    assert environment["gains"][0]["difference"] == pytest.approx(0.075)
    (paper,) = environment["papers"]
    assert paper["reference"] == "arXiv 2505.10978"
    assert paper["not_read"] == ["number of evaluation questions"]
    assert {reason["reason"] for reason in paper["not_comparable"]} == {"fewer seeds: 2; GiGPO has 3"}
