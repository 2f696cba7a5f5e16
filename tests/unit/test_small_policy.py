"""A small policy that is made for an environment: its tokenizer, its configuration, and what is refused."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from megatron_empg.environments.base import DemonstratedTurn, Opening, Task, Walkthrough

ROOT = Path(__file__).resolve().parents[2]
FEW = ["--walkthroughs", "60", "--max-turns", "10"]
FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("small_policy", ROOT / "tools" / "small_policy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    sys.modules["small_policy"] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


@pytest.fixture(scope="module")
def folder(tool: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("small") / "policy"
    tool.main(["sokoban", str(made), "history_length=0", "rules=short", *FEW, "--layers", "2", "--weights"])
    return made


def test_it_is_a_folder_that_transformers_reads(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "model.safetensors"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    config = transformers.AutoConfig.from_pretrained(str(folder))
    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == ("qwen2", 2, 128)
    assert len(tokenizer) <= config.vocab_size == 512
    assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    ends = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    assert (ends["eos_token_id"], ends["pad_token_id"]) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_its_weights_are_those_of_its_configuration(folder: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(str(folder))
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    with torch.no_grad():
        logits = model(torch.tensor([[1, 2, 3]])).logits
    assert logits.shape == (1, 3, 512)
    assert bool(logits.isfinite().all())


def test_a_cell_of_a_room_is_one_token_and_so_is_a_tag(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    assert len(tokenizer.encode("# # _ O #\n# S X P #")) == 10
    for tag in ("<think>", "</think>", "<action>", "</action>"):
        (one,) = tokenizer.encode(tag)
        assert one not in tokenizer.all_special_ids
    turn = "<think> push up</think><action> left</action>"
    assert len(tokenizer.encode(turn)) == 7
    assert tokenizer.decode(tokenizer.encode(turn + "<|im_end|>"), skip_special_tokens=True) == turn


def test_any_text_survives_it(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    for text in ("√ is a box on a target", "Straße 東京 🏁", "a\n\n\tb  c"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_its_template_is_one_that_episodes_append_to(folder: Path) -> None:
    chat_tokens = pytest.importorskip("megatron_empg.rollout.chat_tokens")
    chat = chat_tokens.ChatTokens.from_pretrained(folder)
    assert chat.end_of_turn == 2
    assert len(chat.turn("<think> push up</think><action> left</action>")) == 8


def test_equal_arguments_give_equal_files(tool: ModuleType, folder: Path, tmp_path: Path) -> None:
    tool.main(["sokoban", str(tmp_path), "history_length=0", "rules=short", *FEW, "--layers", "2", "--weights"])
    for name in (*FILES, "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_without_weights_it_is_the_start_of_a_warm_up(tool: ModuleType, tmp_path: Path) -> None:
    tool.main(["sokoban", str(tmp_path / "start"), "rules=none", *FEW])
    assert sorted(path.name for path in (tmp_path / "start").iterdir()) == list(FILES)


def test_a_windowed_prompt_is_a_sequence_of_its_own(tool: ModuleType) -> None:
    asked = [{"role": "user", "content": "go"}]
    now = [{"role": "user", "content": "go on"}]
    task = Task("one", [], {})
    windowed = Walkthrough([DemonstratedTurn("a", "seen", now), DemonstratedTurn("b", None)], Opening(asked))
    assert [[message["content"] for message in read] for read in tool.conversations(windowed, task)] == [
        ["go", "a"],
        ["go on", "b"],
    ]
    whole = Walkthrough([DemonstratedTurn("a", "seen"), DemonstratedTurn("b", None)], Opening(asked))
    assert [[message["content"] for message in read] for read in tool.conversations(whole, task)] == [
        ["go", "a", "seen", "b"]
    ]


def test_what_matches_is_a_token_each_wherever_it_stands(tool: ModuleType, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    shop = ["webshop", str(tmp_path), "generated_products=150", "test_goals=20", "dev_goals=0", "rules=none"]
    tool.main([*shop, *FEW, "--vocabulary", "1024", "--whole", r"B0[0-9A-Z]{8}|\[SEP\]"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    numbers = [token for token in tokenizer.get_added_vocab() if token.startswith("B0")]
    assert len(numbers) > 20
    text = f"click[{numbers[0]}] [SEP] {numbers[-1]}"
    tokens = tokenizer.encode(text)
    assert {tokenizer.decode([token]) for token in tokens} >= {numbers[0], numbers[-1], "[SEP]"}
    assert tokenizer.decode(tokens, skip_special_tokens=True) == text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sokoban", "DIR", "--whole", "(?s).{12}", *FEW], "--vocabulary is 512, but"),
        (["sokoban", "DIR", "size=4"], "small_policy: sokoban found no room of 4x4"),
        (["sokoban", "DIR", "colour=red"], "colour: there is no such setting"),
        (["sokoban", "DIR", "size"], "size"),
        (["chess", "DIR"], "environment name 'chess' is unknown"),
        (["sokoban", "DIR", "--heads", "3"], "--hidden is 128, --heads 3"),
        (["sokoban", "DIR", "--kv-heads", "3"], "kv-heads divide the heads"),
        (["sokoban", "DIR", "--hidden", "64"], "--hidden is 64 and --heads 4: heads of 16"),
        (["sokoban", "DIR", "--hidden", "192"], "--hidden is 192 and --heads 4: heads of 48"),
        (["sokoban", "DIR", "--vocabulary", "300"], "--vocabulary is 300"),
        (["sokoban", "DIR", "--layers", "0"], "--layers is 0; it is 1 or more"),
        (["sokoban", "DIR", "--context", "60", *FEW], "--context is 60, but a walkthrough has"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    tool: ModuleType, tmp_path: Path, words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as refused:
        tool.main([str(tmp_path / "small") if word == "DIR" else word for word in words])
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_heads_are_of_the_sizes_that_the_engine_serves_without_a_gpu(tool: ModuleType) -> None:
    """Read in vLLM's source: to import it takes seconds."""
    spec = importlib.util.find_spec("vllm")
    if spec is None:
        pytest.skip("vLLM is not installed")
    (folder,) = spec.submodule_search_locations or ()
    source = (Path(folder) / "v1/attention/backends/cpu_attn.py").read_text(encoding="utf-8")
    (method,) = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name == "get_supported_head_sizes"
    ]
    (returned,) = method.body
    assert isinstance(returned, ast.Return)
    assert returned.value is not None
    assert tuple(ast.literal_eval(returned.value)) == tool.HEAD_SIZES
