"""A recipe that does not fit its model is refused by name, before anything starts."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_empg.environments.base import Task
from megatron_empg.environments.deep_search.source import DeepSearch
from megatron_empg.recipe import Recipe, RecipeError, SftRecipe, load_recipe
from megatron_empg.recipe.check import _check_gold, _check_weights, check_model, check_recipe
from megatron_empg.weights.mapping.model_config import ModelConfig
from tests.support.models import write_sparse_weights
from tests.support.small_corpus import write_small_corpus
from tests.support.tokenizers_for_tests import FAMILIES

ROOT = Path(__file__).parents[3]
POLICY = ROOT / "recipes/miniature/policy"
SHIPPED_CORPUS = f"environment.settings.corpus={ROOT / 'recipes/miniature/corpus.jsonl'}"
MODEL = {
    "architectures": ["Qwen2ForCausalLM"], "hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 301, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6, "rope_theta": 1e4,
}  # fmt: skip
RECIPE = """
run: {folder: runs/x, steps: 2}
model: {path: MODEL}
environment: {name: deep_search}
rollout: {groups: 64, group_size: 4, max_episode_tokens: 512, max_turn_tokens: 64}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("MODEL", str(tmp_path)))
    return tmp_path / "recipe.yaml"


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (
            ["actor.tensor_parallel=3"],
            ["actor.tensor_parallel is 3", "num_attention_heads (4)", "divisors: [1, 2, 4]"],
        ),
        (["actor.tensor_parallel=8"], ["actor.tensor_parallel is 8", "num_attention_heads (4)"]),
        (["actor.pipeline_parallel=4"], ["actor.pipeline_parallel is 4", "num_hidden_layers (6)"]),
        (
            ["actor.pipeline_parallel=2", "actor.virtual_pipeline=2"],
            ["actor.pipeline_parallel x actor.virtual_pipeline is 4", "num_hidden_layers (6)"],
        ),
        (
            ["actor.tensor_parallel=2", "actor.context_parallel=2", "actor.context_exchange=a2a"],
            ["actor.context_exchange is a2a", "2 heads and 1 key-value groups", "actor.context_parallel (2)"],
        ),
        (
            ["rollout.max_episode_tokens=4096"],
            ["rollout.max_episode_tokens is 4096", "max_position_embeddings (512)"],
        ),
    ],
)
def test_a_layout_that_cannot_be_is_named(path: Path, overrides: list[str], named: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        check_model(load_recipe(path, overrides))
    for part in named:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["actor.tensor_parallel=4"],  # fewer key-value heads than ranks
        ["actor.pipeline_parallel=3", "actor.virtual_pipeline=2"],
        ["actor.context_parallel=2", "actor.context_exchange=a2a"],
        ["actor.tensor_parallel=2", "actor.context_parallel=3"],
    ],
)
def test_a_layout_that_can_be_passes(path: Path, overrides: list[str]) -> None:
    assert check_model(load_recipe(path, overrides)).num_layers == 6


# What would fail only in a process of its own


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


@pytest.fixture
def folder(tmp_path: Path, corpus: Path) -> Path:
    """A copy of the miniature's policy, beside a small corpus."""
    (tmp_path / "corpus.jsonl").symlink_to(corpus)
    return Path(shutil.copytree(POLICY, tmp_path / "policy"))


def words_of(folder: Path) -> list[str]:
    return [f"model.path={folder}", f"environment.settings.corpus={folder.parent / 'corpus.jsonl'}"]


def quickstart(folder: Path, *overrides: str) -> Recipe:
    return load_recipe(ROOT / "recipes/quickstart.yaml", [*words_of(folder), *overrides])


def warm_up(folder: Path, *overrides: str) -> SftRecipe:
    return load_recipe(ROOT / "recipes/miniature_sft.yaml", [*words_of(folder), *overrides], SftRecipe)


def refusal(recipe: Recipe | SftRecipe) -> str:
    with pytest.raises(RecipeError) as caught:
        check_recipe(recipe)
    return str(caught.value)


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_the_shipped_start_is_well(folder: Path) -> None:
    assert check_recipe(quickstart(folder, SHIPPED_CORPUS)).vocab_size == 1280


def test_random_weights_need_no_files_in_a_warm_up(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert check_recipe(warm_up(folder)).num_layers == 3
    assert "has neither model.safetensors nor" in refusal(warm_up(folder, "model.initialise=checkpoint"))
    assert "has neither model.safetensors nor" in refusal(quickstart(folder, "model.initialise=random"))


def test_a_model_without_a_chat_template_is_refused(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", chat_template=None)
    message = refusal(quickstart(folder))
    assert message.startswith(
        f"model.path: the tokenizer of {folder} cannot be used: the tokenizer has no chat templ"
    )


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content | no_such_filter }}{% endfor %}",
        "{% if %}",
        "{{ raise_exception('no') }}",
    ],
)
def test_a_template_that_cannot_be_used_is_refused(folder: Path, template: str) -> None:
    edit(folder / "tokenizer_config.json", chat_template=template)
    assert f"model.path: the tokenizer of {folder} cannot be used: " in refusal(quickstart(folder))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", '{"größe": 1}'.encode("latin-1")])
def test_a_tokenizer_that_cannot_be_loaded_is_refused(folder: Path, content: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    assert f"model.path: the tokenizer of {folder} cannot be used: " in refusal(quickstart(folder))
    assert "cannot be used" in refusal(warm_up(folder))


def test_a_tokenizer_without_its_words_is_refused(folder: Path) -> None:
    """transformers makes an empty one of the settings alone."""
    (folder / "tokenizer.json").unlink()
    assert f"the tokenizer of {folder} knows no word; its tokenizer.json is missing" in refusal(quickstart(folder))


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    edit(folder / "config.json", vocab_size=1000)
    assert "ids up to 1279, the model's vocabulary ends at 999 (vocab_size 1000" in refusal(quickstart(folder))


def test_a_vocabulary_may_be_padded(folder: Path) -> None:
    edit(folder / "config.json", vocab_size=1408)
    write_sparse_weights(folder)
    assert check_recipe(quickstart(folder)).vocab_size == 1408


def test_weights_that_are_cut_short_are_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1000)
    assert refusal(quickstart(folder)).startswith(f"model.path: {file} is not a whole safetensors file: ")
    os.truncate(file, 0)
    assert f"{file} is not a whole safetensors file" in refusal(warm_up(folder, "model.initialise=checkpoint"))


def test_weights_of_another_format_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "it holds pytorch_model.bin, which are not read" in refusal(quickstart(folder))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_hidden_layers": 4}, "tensors do not fit config.json; missing: ['model.layers.3."),
        ({"intermediate_size": 512}, "gate_proj.weight has shape [384, 128], expected [512, 128]"),
        ({"final_logit_softcapping": 30.0}, "config.json: final_logit_softcapping: 30.0"),
        ({"rope_theta": None}, "config.json: rope_theta: missing"),
    ],
)
def test_weights_of_another_model_are_refused(folder: Path, changes: dict[str, Any], says: str) -> None:
    edit(folder / "config.json", **changes)
    message = refusal(quickstart(folder))
    assert message.startswith("model.path: ")
    assert says in message


def test_a_head_that_would_be_lost_is_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 2
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert "config.json says tie_word_embeddings, but lm_head.weight is another" in refusal(quickstart(folder))


def test_what_is_left_out_is_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    check_recipe(quickstart(folder))
    assert "1 tensors rotary_emb.inv_freq are not read" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "warnings"),
    [((), 0), (("rollout.max_lag=2",), 1), (("rollout.max_lag=2", "algorithm.correction=tis"), 0)],
)
def test_lag_without_a_correction_is_warned_of_once(
    folder: Path, caplog: pytest.LogCaptureFixture, overrides: tuple[str, ...], warnings: int
) -> None:
    check_recipe(quickstart(folder, "limits.sync_timeout=200", *overrides))
    told = [record.message for record in caplog.records if "rollout.max_lag" in record.message]
    assert len(told) == warnings
    assert all("algorithm.correction=tis" in message for message in told)


def test_more_questions_than_there_are_is_refused(folder: Path) -> None:
    message = refusal(quickstart(folder, "evaluation.questions=10000000"))
    assert message.startswith("evaluation.questions is 10000000, but test_id has ")
    assert "lower the first, or leave the split out of evaluation.splits" in message


def test_a_prompt_that_leaves_no_room_is_refused(folder: Path) -> None:
    message = refusal(quickstart(folder, "rollout.max_episode_tokens=12", "rollout.max_turn_tokens=4"))
    assert message.startswith("rollout.max_episode_tokens is 12, and the prompt of task '")


@pytest.mark.parametrize("made", [quickstart, warm_up])
def test_a_prompt_that_the_template_cannot_write_is_refused(folder: Path, made: Any) -> None:
    """As templates without a system role, which say so only when they meet one."""
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    edit(folder / "tokenizer_config.json", chat_template=refusing + settings["chat_template"])
    check_recipe(made(folder))
    message = refusal(made(folder, "environment.settings.prompt=tags"))
    assert message.startswith(f"model.path: the chat template of {folder} cannot write the prompt of task '")
    assert "(messages of system, user): no system role" in message
    assert "environment.settings.prompt" in message


def test_what_a_template_does_with_thoughts_must_be_what_the_recipe_says(folder: Path) -> None:
    """Qwen3's leaves thoughts of earlier turns out."""
    edit(folder / "tokenizer_config.json", chat_template=FAMILIES["qwen3"][0])
    for recipe in (quickstart(folder), warm_up(folder)):
        message = refusal(recipe)
        assert message.startswith(f"model.path: the chat template of {folder} does not fit task ")
        assert "leaves the thoughts (<think> to </think>) of earlier turns out" in message
        assert "Set rollout.history: strip (sft.history for a warm-up)" in message
    assert check_recipe(quickstart(folder, "rollout.history=strip")).num_layers == 3
    assert check_recipe(warm_up(folder, "sft.history=strip")).num_layers == 3


def test_tools_that_the_template_does_not_show_are_refused(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", chat_template=FAMILIES["chatml"][0])
    message = refusal(quickstart(folder, "environment.settings.prompt=tools"))
    assert "leaves out tools of the task (search, " in message
    assert "environment.settings.prompt: tags" in message


def test_the_history_is_one_of_two() -> None:
    with pytest.raises(RecipeError, match=r"rollout\.history"):
        load_recipe(ROOT / "recipes/quickstart.yaml", ["rollout.history=window"])


def test_a_warm_up_whose_prompts_leave_no_room_is_refused(folder: Path) -> None:
    message = refusal(warm_up(folder, "actor.max_tokens_per_microbatch=8"))
    assert message.startswith("actor.max_tokens_per_microbatch x actor.context_parallel is 8, and the prompt of ")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("environment.settings.corpus=/no/corpus.jsonl", "environment.settings: "),
        ("environment.settings.searcher=lucky", "searcher 'lucky' is unknown"),
        ("environment.settings.colour=red", "environment.settings: "),
    ],
)
def test_settings_the_environment_refuses_are_named_by_their_key(folder: Path, override: str, says: str) -> None:
    message = refusal(quickstart(folder, override))
    assert message.startswith("environment.settings: ")
    assert says in message


def published(folder: Path, files: dict[str, str], *overrides: str) -> Recipe:
    """Questions of files with these contents, by split, over a server of searches that nobody asks."""
    words = ["environment.settings.search_url=http://127.0.0.1:9/retrieve", "environment.settings.prompt=none"]
    for split, content in files.items():
        path = folder / f"{split}.jsonl"
        path.write_text(content, encoding="utf-8")
        words.append(f"environment.settings.questions.{split}=[{{dataset: jsonl, path: {path}}}]")
    return load_recipe(ROOT / "recipes/quickstart.yaml", [f"model.path={folder}", *words, *overrides])


GOOD_QUESTION = json.dumps({"id": "q1", "question": "Who founded Norhaven?", "answers": ["Ida Marsh"]}) + "\n"
BAD_QUESTION = json.dumps({"id": "q1", "question": "Who founded Norhaven?"}) + "\n"


@pytest.mark.parametrize(
    ("train", "test_id", "says"),
    [
        (BAD_QUESTION, GOOD_QUESTION, "train.jsonl"),
        (GOOD_QUESTION, BAD_QUESTION, "test_id.jsonl"),
        (GOOD_QUESTION, "no JSON\n", "test_id.jsonl"),
    ],
)
def test_a_faulty_file_of_questions_is_a_fault_of_the_settings(
    folder: Path, train: str, test_id: str, says: str
) -> None:
    files = {"train": train, "test_id": test_id}
    message = refusal(published(folder, files, "evaluation.questions=1", "evaluation.splits=[test_id]"))
    assert message.startswith("environment.settings: ")
    assert says in message


def test_a_split_without_files_is_named_where_it_is_evaluated_on(folder: Path) -> None:
    files = {"train": GOOD_QUESTION, "test_id": GOOD_QUESTION}
    check_recipe(published(folder, files, "evaluation.questions=1", "evaluation.splits=[test_id]"))
    message = refusal(published(folder, files, "evaluation.questions=1"))
    assert message.startswith("evaluation.splits names test_ood, which has no tasks under these ")


@pytest.mark.parametrize("method", ["tasks", "sample", "fixed"])
def test_whatever_an_environment_raises_of_its_tasks_is_a_fault_of_its_settings(
    folder: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise KeyError("no such column")

    monkeypatch.setattr(DeepSearch, method, fails)
    assert refusal(quickstart(folder)) == "environment.settings: KeyError: 'no such column'"


@pytest.mark.parametrize("files", [1, 17])
def test_a_32b_model_is_looked_at_by_its_headers(folder: Path, files: int) -> None:
    """65 GB, of which nothing but headers can be read so quickly, or mapped by a machine with less memory."""
    config = json.loads((ROOT / "tests/unit/weights/configs/qwen2.5-32b.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    write_sparse_weights(folder, files=files)
    recipe = quickstart(folder)
    before = time.process_time()
    _check_weights(recipe, check_model(recipe))
    assert time.process_time() - before < 3
    last = max(folder.glob("*.safetensors"))
    os.truncate(last, last.stat().st_size - 1)
    assert str(last) in refusal(recipe)


def test_an_algorithm_that_scores_gold_turns_needs_room_for_them(folder: Path) -> None:
    small = "actor.max_tokens_per_microbatch=512"
    check_recipe(quickstart(folder, small))
    check_recipe(quickstart(folder, "algorithm.name=igpo"))
    message = refusal(quickstart(folder, small, "algorithm.name=igpo"))
    assert message.startswith(
        "rollout.max_episode_tokens is 512, and algorithm.name igpo scores the gold turn of "
    )
    (tokens,) = re.findall(r"\((\d+) tokens\) at the end", message)
    assert f"lower the first to {512 - int(tokens) + 1} or less" in message


def test_gold_turns_need_room_in_the_model_s_positions_too(folder: Path) -> None:
    positions = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
    whole = f"rollout.max_episode_tokens={positions}"
    check_recipe(quickstart(folder, whole))
    message = refusal(quickstart(folder, whole, "algorithm.name=igpo"))
    (tokens,) = re.findall(r"\((\d+) tokens\) at the end", message)
    assert f"lower the first to {positions - int(tokens) + 1} or less" in message


def test_an_algorithm_that_scores_gold_turns_needs_one_of_each_task(folder: Path) -> None:
    recipe = quickstart(folder, "algorithm.name=igpo")
    config = ModelConfig.from_folder(folder)
    chat: Any = None  # it is not asked
    task = Task("t", [], {}, gold=None)
    with pytest.raises(
        RecipeError, match=r"algorithm.name is igpo.* the environment deep_search names none for task 't'"
    ):
        _check_gold(recipe, config, chat, [task])
    _check_gold(quickstart(folder), config, chat, [task])


def test_nothing_of_megatron_is_imported() -> None:
    code = (
        "import sys; from pathlib import Path; from megatron_empg.recipe import load_recipe; "
        "from megatron_empg.recipe.check import check_recipe; "
        "check_recipe(load_recipe(Path('recipes/quickstart.yaml'))); "
        "found = {name.partition('.')[0] for name in sys.modules} & {'megatron', 'vllm'}; assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


ASKED: list[Any] = [{"role": "user", "content": "hi"}]
DEEP: dict[str, Any] = {}
for _ in range(3000):
    DEEP = {"a": DEEP}
ILL_FORMED: list[tuple[Any, str]] = [
    (Task("a", ASKED, {}, observation_role="boss"), "the observation_role 'boss'; allowed"),  # type: ignore[arg-type]
    (Task("a", ASKED, {}, gold=5), "a gold that is not text"),  # type: ignore[arg-type]
    (Task("a", ASKED, {"x": object()}), "a payload that is not JSON"),
    (Task("a", ASKED, {}, kind=[3]), "the kind [3]; it must be a text"),  # type: ignore[arg-type]
    (Task("a", ASKED, {}, tools=(DEEP,)), "tools that are not a tuple"),
    (Task("a", [{"role": "user", "content": None}], {}), "whose content is not text"),  # type: ignore[typeddict-item]
    (Task("a", [*ASKED, {"role": "system", "content": "x"}], {}), "a system message that is not the first"),
    ({"id": "a"}, "a dict in the place of a Task"),
]


@pytest.mark.parametrize(("task", "fault"), ILL_FORMED)
def test_an_ill_formed_task_is_refused_by_its_id_and_fault(
    folder: Path, monkeypatch: pytest.MonkeyPatch, task: Any, fault: str
) -> None:
    monkeypatch.setattr(DeepSearch, "tasks", lambda self, split: [task])
    message = refusal(quickstart(folder))
    assert message.startswith("environment.settings: task ")
    assert " of train has " in message
    assert fault in message


def test_two_tasks_of_one_id_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeepSearch, "tasks", lambda self, split: [Task("a", ASKED, {})] * 3)
    assert "train has two tasks of the id 'a'" in refusal(quickstart(folder))


@pytest.mark.parametrize(("prompt", "warnings"), [([], 0), ([{"role": "assistant", "content": "x"}], 1)])
def test_a_prompt_that_an_opening_must_end_is_warned_of_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, prompt: Any, warnings: int
) -> None:
    """One of no message is none: there the opening says everything."""
    tasks = [Task(f"a{number}", prompt, {}) for number in range(3)]
    monkeypatch.setattr(DeepSearch, "tasks", lambda self, split: tasks)
    monkeypatch.setattr(DeepSearch, "sample", lambda self, split, count, seed: tasks)
    check_recipe(quickstart(folder, "evaluation.questions=0"))
    says = "a last message of the assistant's"
    assert [says in record.message for record in caplog.records].count(True) == warnings
    assert not any("no message at all" in record.message for record in caplog.records)


def test_an_environment_that_leaves_while_its_tasks_are_asked_for_is_a_fault_of_its_settings(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(self: Any, split: Any) -> Any:
        raise SystemExit(0)

    monkeypatch.setattr(DeepSearch, "tasks", leave)
    assert refusal(quickstart(folder)) == "environment.settings: SystemExit: 0"
