"""A tokenizer that knows the words of tool calls, as those of published models do.

The miniature's spells a schema in 250 tokens and a call in 60; Qwen2.5's needs fewer than half of it.
"""

import itertools
import json
import re
from typing import Any

import jinja2
from tokenizers import Tokenizer, models

from megatron_empg.environments.deep_search.actions import SearchToolCall
from megatron_empg.environments.deep_search.agent_tools import ARGUMENT
from megatron_empg.environments.deep_search.prompt import syntax_for
from megatron_empg.environments.deep_search.published_world import PUBLISHED_EXAMPLE, PUBLISHED_TOOLS
from megatron_empg.environments.deep_search.searcher import LAST_THOUGHTS, THOUGHTS

_THOUGHTS = [*(thought.format(relation="") for thought in THOUGHTS), *LAST_THOUGHTS]


def with_call_tags(state: dict[str, Any]) -> dict[str, Any]:
    """Tokens for <tool_call> and </tool_call>, as Qwen2.5 has them, in the places of <search> and </search>."""
    text = json.dumps(state, ensure_ascii=False)
    changed: dict[str, Any] = json.loads(text.replace('search>"', 'tool_call>"'))
    return changed


def learn_words(state: dict[str, Any], texts: list[str]) -> dict[int, list[int]]:
    """Make every word of the texts one token of the tokenizer that `state` (its tokenizer.json) is.

    Merges are added behind those that are there, so that what they make stays as it is. Returns the new ids, and
    of which tokens each is put together.
    """
    model = state["model"]
    vocabulary, merges = model["vocab"], model["merges"]
    made: dict[int, list[int]] = {}
    for word in _words(state, texts):
        tokens = _spelled(model, word)
        so_far = tokens[0]
        for number, token in enumerate(tokens[1:], start=2):
            merges.append([so_far, token])
            so_far += token
            if so_far not in vocabulary:
                vocabulary[so_far] = len(vocabulary)
                made[vocabulary[so_far]] = [vocabulary[part] for part in tokens[:number]]
    return made


def _words(state: dict[str, Any], texts: list[str]) -> list[str]:
    """What the tokenizer cuts texts into before it spells them, each once."""
    whole = Tokenizer.from_str(json.dumps(state))
    added = "|".join(re.escape(token["content"]) for token in state["added_tokens"])
    found: dict[str, None] = {}
    for text in texts:
        for part in re.split(added, text):
            found |= dict.fromkeys(word for word, _ in whole.pre_tokenizer.pre_tokenize_str(part))
    return list(found)


def _spelled(model: dict[str, Any], word: str) -> list[str]:
    merges = [tuple(merge) for merge in model["merges"]]
    spelling = models.BPE(vocab=model["vocab"], merges=merges)
    return [token.value for token in spelling.tokenize(word)]


def words_of_tools(template: str) -> list[str]:
    """Texts that hold the words with which tools are told of, called and answered."""
    syntax = syntax_for("tools", tools=PUBLISHED_TOOLS, example=PUBLISHED_EXAMPLE)
    name = "Tuvalu"
    called = [
        syntax.write(thought, SearchToolCall(tool, f" {name}").general)
        for tool in ARGUMENT
        for thought in _THOUGHTS
    ]
    told = syntax.messages(name, 24)
    seen = [f"found\n1 {name}", "no results", f"page {name} : {name}", "no page"]
    for call, observation in zip(called, itertools.cycle(seen), strict=False):
        told.append({"role": "assistant", "content": call})
        told.append({"role": "tool", "content": observation})
    tools = list(syntax.template_tools)
    shown = jinja2.Environment().from_string(template).render(messages=told, tools=tools)
    return [shown.replace(name, "")]
