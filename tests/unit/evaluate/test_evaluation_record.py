"""Outcomes on disk: what an interrupted evaluation goes on from, and what it refuses to go on from."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_empg.environments.base import Task
from megatron_empg.evaluate.errors import EvaluationError
from megatron_empg.evaluate.options import EvaluationOptions, model_override
from megatron_empg.evaluate.play import refuse_errors
from megatron_empg.evaluate.policies import DECIDING_KEYS, identity_of, policies_of, source_of
from megatron_empg.evaluate.questions import EvaluationPass, SampleOutcome, fingerprint_task
from megatron_empg.evaluate.record import OutcomeRecord
from megatron_empg.recipe import Recipe, load_recipe, parse_recipe
from megatron_empg.recipe.identity import SETTINGS, flat

IDENTITY = {"run.seed": 1, "environment.name": "deep_search"}
ROOT = Path(__file__).parents[3]
RECIPE = ROOT / "recipes/quickstart.yaml"

NOT_DECIDING = {
    # The policy is told by its content.
    "model.path", "model.initialise",
    # How much is asked; more of it goes on from less.
    "evaluation.every", "evaluation.questions", "evaluation.splits", "evaluation.greedy",
    # How training asks, and how many episodes are in flight.
    "rollout.groups", "rollout.group_size", "rollout.temperature", "rollout.concurrency",
    "rollout.max_lag", "rollout.keep_all_batches", "rollout.replay_from",
    # Where a run goes, how long, and what is kept.
    "run.folder", "run.steps", "run.checkpoint_every", "run.keep_checkpoints",
}  # fmt: skip
"""Keys of a recipe that no episode of an evaluation depends on."""
NO_SECTION_OF_EPISODES = ("engines.", "algorithm.", "actor.", "limits.", "logging.")
"""Sections that say how training goes and where engines run."""


def task(number: int, **payload: Any) -> Task:
    return Task(f"task {number}", [{"role": "user", "content": f"what is {number} ?"}], payload, hops=2)


ASKED = EvaluationPass("test_id", "sampled", [task(0), task(1)], samples=2)


def outcome(number: int, sample: int = 0, **other: Any) -> SampleOutcome:
    known = {
        "id": f"task {number}", "split": "test_id", "decoding": "sampled", "kind": "all", "hops": 2,
        "sample": sample, "success": True, "end": "success", "reward": 1.0, "turns": 3, "tokens": 40,
        "error": None, "question": fingerprint_task(task(number)),
    }  # fmt: skip
    return SampleOutcome(**{**known, **other})


def error(number: int) -> SampleOutcome:
    return outcome(number, success=False, end="error", error="EngineError: gone")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder/out.outcomes.jsonl"


def test_what_was_recorded_is_not_asked_again(path: Path) -> None:
    with OutcomeRecord(path, IDENTITY) as record:
        record.note_start({"commit": "abc"})
        record.note_policy("runs/a", "policy a")
        assert record.missing("policy a", ASKED) == [[0, 1], [0, 1]]
        record.add("policy a", outcome(0))
        record.add("policy a", outcome(1, sample=1))
    with OutcomeRecord(path, IDENTITY) as record:
        assert record.missing("policy a", ASKED) == [[1], [0]]
        assert record.missing("policy b", ASKED) == [[0, 1], [0, 1]]
        assert record.outcomes("policy a", ASKED) == [outcome(0), outcome(1, sample=1)]
        assert record.starts == [{"commit": "abc"}]


def test_more_questions_and_samples_go_on_from_fewer(path: Path) -> None:
    with OutcomeRecord(path, IDENTITY) as record:
        for number in range(2):
            for sample in range(2):
                record.add("a", outcome(number, sample))
        assert record.missing("a", ASKED) == [[], []]
        more = EvaluationPass("test_id", "sampled", [task(0), task(1), task(2)], samples=3)
        assert record.missing("a", more) == [[2], [2], [0, 1, 2]]
        assert record.missing("a", replace(more, decoding="greedy")) == [[0, 1, 2]] * 3


def test_an_error_is_played_once_more(path: Path) -> None:
    with OutcomeRecord(path, IDENTITY) as record:
        record.add("a", error(0))
        assert record.missing("a", ASKED)[0] == [0, 1]
    with OutcomeRecord(path, IDENTITY) as record:
        record.add("a", error(0))
        assert record.missing("a", ASKED)[0] == [1]
    with OutcomeRecord(path, IDENTITY) as record:
        assert record.missing("a", ASKED)[0] == [1]
        assert record.outcomes("a", ASKED) == [error(0)]


def test_the_last_try_counts(path: Path) -> None:
    with OutcomeRecord(path, IDENTITY) as record:
        record.add("a", error(0))
        record.add("a", outcome(0))
        assert record.outcomes("a", ASKED) == [outcome(0)]


def test_a_line_torn_by_a_kill_is_asked_again(path: Path) -> None:
    with OutcomeRecord(path, IDENTITY) as record:
        record.add("a", outcome(0))
        record.add("a", outcome(1))
    path.write_bytes(path.read_bytes()[:-20])
    with OutcomeRecord(path, IDENTITY) as record:
        assert record.missing("a", ASKED) == [[1], [0, 1]]
        record.add("a", outcome(1))
    with OutcomeRecord(path, IDENTITY) as record:
        assert record.missing("a", ASKED) == [[1], [1]]


def test_a_file_torn_in_its_first_line_begins_anew(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('{"format": "megatron_empg outc', encoding="utf-8")
    with OutcomeRecord(path, IDENTITY) as record:
        record.add("a", outcome(0))
    with OutcomeRecord(path, IDENTITY) as record:
        assert len(record) == 1


def test_another_evaluation_is_refused_by_every_difference(path: Path) -> None:
    with OutcomeRecord(path, IDENTITY) as record:
        record.add("a", outcome(0))
    before = path.read_bytes()
    other = {"run.seed": 2, "environment.name": "deep_search", "rollout.max_turn_tokens": 9}
    with pytest.raises(EvaluationError) as refused, OutcomeRecord(path, other):
        pass
    assert "run.seed was 1, is 2" in str(refused.value)
    assert "rollout.max_turn_tokens was not given, is 9" in str(refused.value)
    assert "environment.name" not in str(refused.value)
    assert path.read_bytes() == before


def test_a_folder_that_holds_another_policy_now_is_refused(path: Path) -> None:
    with OutcomeRecord(path, IDENTITY) as record:
        record.note_policy("runs/a", "one")
        record.note_policy("runs/a", "one")
        with pytest.raises(EvaluationError, match="another policy in runs/a"):
            record.note_policy("runs/a", "two")


def test_a_question_that_reads_otherwise_now_is_refused(path: Path) -> None:
    changed = EvaluationPass("test_id", "sampled", [task(0, answer="another")], samples=1)
    with OutcomeRecord(path, IDENTITY) as record:
        record.add("a", outcome(0))
        with pytest.raises(EvaluationError, match="'task 0' of test_id reads otherwise"):
            record.outcomes("a", changed)


def test_two_evaluations_do_not_write_one_file(path: Path) -> None:
    with (
        OutcomeRecord(path, IDENTITY),
        pytest.raises(EvaluationError, match="another evaluation writes"),
        OutcomeRecord(path, IDENTITY),
    ):
        pass


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ('{"metrics": 1}', "is not a file of outcomes"),
        ('{"format": "megatron_empg outcomes", "version": 99}', "is not a file of outcomes"),
        ('{"format": "megatron_empg outcomes", "version": 1}', "cannot be read"),
        ('{"format": "megatron_empg outcomes", "version": 1, "identity": [1]}', "cannot be read"),
    ],
)
def test_a_file_of_something_else_is_left_alone(path: Path, line: str, part: str) -> None:
    path.parent.mkdir()
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(EvaluationError, match=part), OutcomeRecord(path, IDENTITY):
        pass
    assert path.read_text(encoding="utf-8") == line + "\n"


@pytest.mark.parametrize(
    "change",
    [
        {"success": "yes"}, {"reward": None}, {"reward": float("nan")}, {"sample": 1.5}, {"end": "won"},
        {"id": 3}, {"decoding": "beam"},
    ],
)  # fmt: skip
def test_an_outcome_that_cannot_be_is_named(path: Path, change: dict[str, Any]) -> None:
    with OutcomeRecord(path, IDENTITY) as record:
        record.add("a", outcome(0))
    good = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**good, **change}) + "\n")
    with pytest.raises(EvaluationError, match=r"out\.outcomes\.jsonl"), OutcomeRecord(path, IDENTITY):
        pass


def test_names_with_any_text_are_kept(path: Path) -> None:
    strange = Task("a\u2028b\ud800\n", [], {})
    asked = EvaluationPass("test_id", "sampled", [strange], 1)
    kept = outcome(0, id=strange.id, hops=strange.hops, question=fingerprint_task(strange))
    with OutcomeRecord(path, IDENTITY) as record:
        record.add("a", kept)
        assert record.outcomes("a", asked) == [kept]
    assert kept.hops is None
    with OutcomeRecord(path, IDENTITY) as record:
        assert len(record) == 1


def test_too_many_errors_are_no_measurement() -> None:
    few = [error(0), *[outcome(number) for number in range(1, 10)]]
    refuse_errors(few, 0.1, "test_id sampled", "")
    for broken, said in (
        ([error(0)], "1 of 1 episodes ended in an error (1 EngineError)"),
        ([error(0), replace(error(1), error="RoundTimeout: late"), outcome(2)], "(1 EngineError, 1 RoundTimeout)"),
    ):
        with pytest.raises(EvaluationError, match="That is not a measurement") as refused:
            refuse_errors(broken, 0.5, "test_id sampled", "  task 0, sample 0, error")
        assert said in str(refused.value)
        assert "One of them:\n  task 0, sample 0, error\n" in str(refused.value)
    with pytest.raises(
        EvaluationError, match=r"One of them:\n  task task 0, sample 0, error: EngineError: gone\n"
    ):
        refuse_errors([error(0)], 0.5, "test_id sampled", "")
    refuse_errors([], 0.5, "test_id sampled", "")


def test_options_become_keys_of_the_recipe() -> None:
    options = EvaluationOptions(splits=("test_ood",), questions=7, temperature=0.5, greedy=False, seed=3)
    recipe = load_recipe(RECIPE, [*options.overrides(), model_override(Path("a: b, [c] #d"))])
    evaluation = recipe.evaluation
    assert (evaluation.splits, evaluation.questions, evaluation.temperature) == (["test_ood"], 7, 0.5)
    assert (evaluation.greedy, recipe.run.seed) == (False, 3)
    assert recipe.model.path == Path("a: b, [c] #d")
    assert EvaluationOptions().overrides() == []


def test_what_decides_an_episode_is_an_evaluations_identity() -> None:
    def identity(*overrides: str) -> dict[str, Any]:
        return identity_of(load_recipe(RECIPE, list(overrides)))

    same = identity()
    assert any("corpus" in key for key in same), "the content of the environment's data"
    for change in ("engines.count=3", "evaluation.questions=3", "actor.optimizer.lr=0.1", "limits.turn_timeout=9"):
        assert identity(change) == same, change
    for change in (
        "run.seed=9",
        "rollout.max_turn_tokens=9",
        "evaluation.temperature=0.7",
        "model.dtype=bfloat16",
    ):
        assert identity(change) != same, change
    assert identity("environment.settings.prompt=tags") != same
    assert identity("rollout.history=strip") != same


def test_data_counts_by_its_content_wherever_it_lies(tmp_path: Path) -> None:
    """Also that of a list, and services wherever they are."""
    question = {"id": "q1", "question": "Who founded Norhaven?", "answers": ["Ida Marsh"]}
    line = json.dumps(question) + "\n"
    for name, text in (("here", line), ("there", line), ("other", line * 2)):
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")

    def identity(name: str, url: str = "http://one:1") -> dict[str, Any]:
        files = {"test_id": [{"dataset": "jsonl", "path": str(tmp_path / f"{name}.jsonl")}]}
        settings = {"corpus": None, "questions": files, "search_url": url}
        recipe = load_recipe(RECIPE).model_dump(mode="json")
        recipe["environment"]["settings"] = settings
        return identity_of(parse_recipe(recipe))

    same = identity("here")
    assert any(key.startswith("content of environment.settings.questions.test_id.0") for key in same)
    assert identity("there") == same
    assert identity("here", url="http://two:2") == same
    assert identity("other") != same
    assert not any(str(tmp_path) in str(value) for value in same.values())


def test_every_key_of_a_recipe_decides_an_episode_or_is_known_not_to() -> None:
    keys = flat(load_recipe(RECIPE).model_dump(mode="json"), Recipe)
    open_keys = [key for key in keys if not key.startswith((*NO_SECTION_OF_EPISODES, SETTINGS))]
    assert {"rollout.history", "environment.max_turns"} <= set(open_keys)
    known = [(key in DECIDING_KEYS) + (key in NOT_DECIDING) for key in open_keys]
    assert known == [1] * len(known), "classify it: by Mark.DECIDES_EPISODES where it is, or in NOT_DECIDING here"
    assert NOT_DECIDING | set(DECIDING_KEYS) <= set(open_keys), "a key that is no more"


def test_a_run_is_asked_by_what_it_exported_or_its_newest_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("run: {}\n", encoding="utf-8")
    with pytest.raises(EvaluationError, match="no checkpoint yet, and no policy"):
        source_of(tmp_path)
    for step in (2, 4):
        (tmp_path / f"checkpoints/step_{step:06d}").mkdir(parents=True)
    assert source_of(tmp_path) == tmp_path / "checkpoints/step_000004"
    (tmp_path / "policy").mkdir()
    (tmp_path / "exported.json").write_text('{"step": 2}', encoding="utf-8")
    assert source_of(tmp_path) == tmp_path / "checkpoints/step_000004", "the exported one is older"
    (tmp_path / "exported.json").write_text('{"step": 4}', encoding="utf-8")
    assert source_of(tmp_path) == tmp_path / "policy"
    assert source_of(tmp_path / "policy") == tmp_path / "policy"


def test_a_policy_is_evaluated_once(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"model_type": "qwen2"}', encoding="utf-8")
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(EvaluationError, match="are the same policy"):
        policies_of([tmp_path / "one", tmp_path / "two"])
    (tmp_path / "two/model.safetensors").write_bytes(b"others!")
    one, two = policies_of([tmp_path / "one", tmp_path / "two"])
    assert (one.label, two.label) == ("one", "two")
    assert one.key != two.key
    with pytest.raises(EvaluationError, match="no such folder"):
        policies_of([tmp_path / "three"])
