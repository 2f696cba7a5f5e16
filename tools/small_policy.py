"""A small policy for an environment: a tokenizer that was trained on its walkthroughs, and a tiny Qwen2 model.

    python tools/small_policy.py ENVIRONMENT DIR [setting=value ...] [--layers 3] [--hidden 128] [--whole PATTERN]
        [--weights]

DIR becomes a Hugging Face folder. A warm-up of `empg sft` begins with it as it is (`model.initialise: random`);
whatever else reads models wants weights, random ones, which `--weights` writes. The settings are those of the
recipe's environment: the words that the policy is told are those that its tokenizer knows. What matches `--whole`
anywhere in the walkthroughs, such as the numbers of a shop's products, is a token each: a small policy learns to
copy one token long before it copies many. Equal arguments give equal files.
"""

import argparse
import asyncio
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).resolve().parent
sys.path[:0] = [str(TOOLS), str(TOOLS.parent)]

from build_miniature import CHAT_TEMPLATE, MODEL_CONFIG, SPECIAL_TOKENS, WORD_PATTERN, write_json  # noqa: E402

from megatron_empg.environments.base import Message, Task, TaskSource, Walkthrough  # noqa: E402

TAG = re.compile(r"</?[a-z_]+>")
"""What marks the parts of a turn; each becomes one token."""
VOCABULARY_STEP = 256
"""The model's vocabulary is a multiple of it: Megatron then adds nothing up to tensor parallel size 2."""
NOTHING = "(?!)"
"""The pattern that matches nowhere."""
HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Of attention heads, those that vLLM 0.32 serves on CPUs."""
UNREAD_EVERY = 10
"""A turn that cannot be read is played in one of so many tasks, for the words that it is answered with."""


@dataclass(frozen=True)
class Shape:
    """Of the model. `context`: tokens of the longest sequence; `vocabulary`: tokens at most."""

    layers: int = 3
    hidden: int = 128
    heads: int = 4
    kv_heads: int = 2
    vocabulary: int = 512
    context: int = 1024

    def check(self) -> None:
        """Raises ValueError for a shape that no model has."""
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; it is 1 or more")
        if self.hidden % (2 * self.heads) or self.heads % self.kv_heads:
            raise ValueError(
                f"--hidden is {self.hidden}, --heads {self.heads}, --kv-heads {self.kv_heads}: heads divide the "
                "hidden size into even parts, and kv-heads divide the heads"
            )
        size = self.hidden // self.heads
        if size not in HEAD_SIZES:
            raise ValueError(
                f"--hidden is {self.hidden} and --heads {self.heads}: heads of {size}, which no engine without a "
                f"GPU serves; vLLM's attention on CPUs knows those of {', '.join(map(str, HEAD_SIZES))}: give "
                "another --hidden or --heads"
            )
        if self.vocabulary < 2 * VOCABULARY_STEP or self.vocabulary % VOCABULARY_STEP:
            raise ValueError(
                f"--vocabulary is {self.vocabulary}; it is a multiple of {VOCABULARY_STEP}, and "
                f"{2 * VOCABULARY_STEP} or more: the bytes alone are 256 tokens"
            )


def conversations(walkthrough: Walkthrough, task: Task) -> Iterator[list[Message]]:
    """The sequences of an episode, as messages that end with a turn: one, or one for each windowed prompt."""
    read = [*task.prompt, *walkthrough.opening.messages]
    for turn in walkthrough.turns:
        read = [*read, Message(role="assistant", content=turn.action)]
        if turn.context is not None:
            yield read
            read = list(turn.context)
        elif turn.observation is not None:
            read = [*read, Message(role=task.observation_role, content=turn.observation)]
    if read and read[-1]["role"] == "assistant":
        yield read


def played(source: TaskSource, count: int) -> Iterator[list[Message]]:
    """The conversations of `count` walkthroughs of training. Raises ValueError where the environment has none."""
    demonstrations = source.demonstrations()
    if demonstrations is None:
        raise ValueError(
            "the environment has no walkthroughs under these settings, so no policy can learn from them"
        )
    for seed, task in enumerate(source.sample("train", count, seed=0)):
        yield from conversations(demonstrations.walkthrough(task, seed), task)
        if seed % UNREAD_EVERY == 0 and source.isolation == "coroutine":
            yield asyncio.run(_unread(source, task))


async def _unread(source: TaskSource, task: Task) -> list[Message]:
    """What a policy reads behind a turn that could not be read."""
    episode = source.make(task)
    try:
        await episode.reset()
        result = await episode.step("")
    finally:
        await episode.close()
    told = [Message(role=task.observation_role, content=result.observation or "")]
    return [*told, *(result.context or [])]


def texts(sequences: Sequence[Sequence[Message]], whole: Sequence[str]) -> Iterator[str]:
    """What the tokenizer is trained on: messages as the chat template shows them, without what is `whole`."""
    longest_first = sorted(whole, key=len, reverse=True)
    between = re.compile("|".join(map(re.escape, longest_first)) if whole else NOTHING)
    for messages in sequences:
        for message in messages:
            shown = f"{message['role']}\n{message['content']}"
            yield from filter(None, between.split(shown))


def tags_of(sequences: Sequence[Sequence[Message]]) -> list[str]:
    """The tags that turns are written with, in the order in which they are met."""
    turns = [
        message["content"] for messages in sequences for message in messages if message["role"] == "assistant"
    ]
    return list(dict.fromkeys(tag for turn in turns for tag in TAG.findall(turn)))


def matches_of(pattern: re.Pattern[str], sequences: Sequence[Sequence[Message]]) -> list[str]:
    """What matches in any message, in the order in which it is met."""
    told = (message["content"] for messages in sequences for message in messages)
    return list(dict.fromkeys(found[0] for text in told for found in pattern.finditer(text) if found[0]))


def write_tokenizer(
    folder: Path, sequences: Sequence[Sequence[Message]], shape: Shape, whole: re.Pattern[str] | None = None
) -> None:
    """A byte-level BPE. Tags and what matches `whole` are single tokens, but ordinary ones, so that they stay in
    decoded text. Raises ValueError where these are too many for the vocabulary."""
    import json

    matches = [] if whole is None else matches_of(whole, sequences)
    added = list(dict.fromkeys([*tags_of(sequences), *matches]))
    if len(added) + len(SPECIAL_TOKENS) + 256 > shape.vocabulary:
        raise ValueError(
            f"--vocabulary is {shape.vocabulary}, but {len(added)} texts are to be a token each beside 256 bytes: "
            "raise it, or let --whole match less"
        )
    tokenizer = _trained(sequences, shape.vocabulary, added)
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["content"] in SPECIAL_TOKENS
    write_json(folder / "tokenizer.json", state)
    by_number = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in state["added_tokens"]
    }
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": by_number,
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": shape.context,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    write_json(folder / "tokenizer_config.json", config)


def _trained(sequences: Sequence[Sequence[Message]], vocabulary: int, whole: Sequence[str]) -> Any:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated")
    into_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, into_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    added = [*SPECIAL_TOKENS, *whole]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in added],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(sequences, whole), trainer)
    return tokenizer


def write_model(folder: Path, shape: Shape) -> None:
    """config.json and generation_config.json."""
    config = MODEL_CONFIG | {
        "hidden_size": shape.hidden,
        "intermediate_size": 3 * shape.hidden,
        "max_position_embeddings": shape.context,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
    }
    write_json(folder / "config.json", config)
    ends = {"eos_token_id": config["eos_token_id"], "pad_token_id": config["pad_token_id"]}
    write_json(folder / "generation_config.json", {"do_sample": True, "temperature": 1.0, **ends})


def write_weights(folder: Path, seed: int) -> None:
    """Random weights, as the model's configuration draws them."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(folder)))
    tied = "lm_head.weight"
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != tied}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def longest(folder: Path, sequences: Sequence[Sequence[Message]]) -> int:
    """Tokens of the longest conversation."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    lengths = []
    for read in sequences:
        messages = [{"role": message["role"], "content": message["content"]} for message in read]
        lengths.append(len(tokenizer.apply_chat_template(messages, return_dict=False)))
    return max(lengths)


def build(
    source: TaskSource,
    folder: Path,
    shape: Shape,
    walkthroughs: int,
    weights: int | None,
    whole: re.Pattern[str] | None = None,
) -> str:
    """Write the folder; what is in it, in a line. `weights`: the seed of random ones, or none are written; what
    matches `whole` becomes a token each.

    Raises ValueError where the environment has no walkthroughs, or they do not fit into the context.
    """
    sequences = list(played(source, walkthroughs))
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, sequences, shape, whole)
    write_model(folder, shape)
    most = longest(folder, sequences)
    if most > shape.context:
        raise ValueError(
            f"--context is {shape.context}, but a walkthrough has {most} tokens: raise it, or let the environment "
            "tell less (history_length, rules, max_turns)"
        )
    if weights is not None:
        write_weights(folder, weights)
    return f"{folder}: the longest of {len(sequences)} sequences has {most} of {shape.context} tokens"


def source_of(environment: str, given: Sequence[str], max_turns: int) -> TaskSource:
    """The task source. Raises ValueError for an unknown one, and for settings that it does not take."""
    from megatron_empg.common.section import Section
    from megatron_empg.common.values import plain_settings
    from megatron_empg.environments.registry import make_task_source
    from megatron_empg.recipe.overrides import apply_overrides

    settings: dict[str, Any] = {}
    apply_overrides(settings, given, Section)
    return make_task_source(environment, max_turns=max_turns, **plain_settings(settings))


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("environment", help="one that `empg environments` lists, or module:Class")
    parser.add_argument("folder", type=Path)
    parser.add_argument("settings", nargs="*", metavar="setting=value")
    shape = Shape()
    for name, value in vars(shape).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=f"{value} unless given")
    parser.add_argument("--max-turns", type=int, default=8, help="as in the recipe: 8 unless given")
    parser.add_argument("--walkthroughs", type=int, default=2000, help="played for their words: 2000 unless given")
    parser.add_argument("--whole", type=_pattern, metavar="PATTERN", help="matches become a token each")
    parser.add_argument("--weights", type=int, nargs="?", const=0, metavar="SEED", help="write random weights too")
    return parser.parse_intermixed_args(words)


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    given = parsed(words)
    shape = Shape(given.layers, given.hidden, given.heads, given.kv_heads, given.vocabulary, given.context)
    try:
        shape.check()
        source = source_of(given.environment, given.settings, given.max_turns)
        print(build(source, given.folder, shape, given.walkthroughs, given.weights, given.whole))
    except (ValueError, OSError) as error:
        sys.exit(f"small_policy: {error}")


if __name__ == "__main__":
    main()
