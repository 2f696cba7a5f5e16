"""Whatever a policy writes is answered by an observation that says what is wrong: no error, reward or delay."""

import asyncio
import contextlib
import json
import random
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megatron_empg.environments.calls.base import MalformedCall
from megatron_empg.environments.deep_search.environment import DeepSearchEnvironment
from megatron_empg.environments.deep_search.prompt import PROMPT_STYLES, syntax_for
from megatron_empg.environments.deep_search.scoring import GoldAnswerScore

SYNTAXES = {style: syntax_for(style) for style in PROMPT_STYLES}
PARTS = [
    *("<think>", "</think>", "<search>", "</search>", "<visit>", "</visit>", "<answer>", "</answer>"),
    *("<tool_call>", "</tool_call>", "<tool_response>", "<|python_tag|>", "<|im_end|>", "<|im_start|>system\n"),
    *("<|eot_id|>", "<|endoftext|>", "[/INST]", "＜search＞", "‹search›", "<ѕearch>", "<SEARCH>", "< search >"),
    *(
        "\ud800",
        "\udfff",
        "\x00",
        "\x1b[2J",
        "\u202e",
        "\u200b",
        "\ufeff",
        "\u2028",
        "\r\n",
        " ",
        "e\u0301",
        "👩‍👩‍👧",
    ),
    *(
        "{",
        "}",
        "[",
        "]",
        '"',
        ":",
        ",",
        "\\",
        "\\u",
        "\\ud800",
        '{"name": "search", ',
        '"arguments": {"query": "',
    ),
    *(
        '"parameters": {',
        '"}}',
        "null",
        "1e999",
        "-",
        "NaN",
        "lima ",
        "{question}",
        "%s",
        "$(id)",
        "__import__('os')",
    ),
]


class Echo:
    """A search that finds what it is asked for, so that reaching it is seen."""

    async def search(self, query):
        query.encode("utf-8")
        return f"found {query}"

    visit = search


def stepped(style, action):
    episode = DeepSearchEnvironment(Echo(), GoldAnswerScore(("the right answer",)), SYNTAXES[style])
    return asyncio.run(episode.step(action))


def holds(result, style):
    """What must be true whatever was written."""
    assert result.reward == 0.0
    assert not result.success
    if result.done:
        assert result.info["tool"] == "answer"
        assert result.observation is None
    elif result.malformed:
        assert result.observation.startswith("malformed call : ")
        assert result.observation.endswith(SYNTAXES[style].reminder)
        assert len(result.observation) < 500
        result.observation.encode("utf-8")
    else:
        assert result.observation.startswith("found ")


@pytest.mark.parametrize("style", PROMPT_STYLES)
@given(st.lists(st.sampled_from(PARTS) | st.text(max_size=5), max_size=30).map("".join))
@example('<tool_call>{"name": "search", "arguments": {"query": "\\ud800"}}</tool_call>')
@example("<think>a</think><search>\ud800</search>")
@settings(max_examples=150, deadline=None)
def test_any_text_is_answered(style, action):
    holds(stepped(style, action), style)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(["name", "arguments", "parameters", "type", "query", "title", "answer", "id"])


@pytest.mark.parametrize("style", ["tools", "tools_llama3"])
@given(
    st.dictionaries(
        keys,
        json_values
        | st.sampled_from(["search", "visit", "answer", "function"])
        | st.dictionaries(keys, json_values, max_size=2),
        max_size=4,
    ),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_any_json_is_answered(style, fields, wrapped):
    call = json.dumps(fields)
    holds(stepped(style, f"<tool_call>\n{call}\n</tool_call>" if wrapped else call), style)


@pytest.mark.parametrize("style", PROMPT_STYLES)
def test_a_hundred_kilobytes_of_junk_are_answered(style):
    rng = random.Random(0)
    junk = "".join(rng.choices(PARTS, k=30_000))[:100_000]
    letters = "".join(chr(rng.randrange(0x20, 0x3000)) for _ in range(100_000))
    wrapped = '<tool_call>{"name": "visit", "arguments": {"title": ' + json.dumps(letters) + "}}</tool_call>"
    for action in (junk, letters, wrapped, '{"name": "' + letters.replace('"', "") + '"}', "{" * 100_000):
        holds(stepped(style, action), style)


@pytest.mark.parametrize("style", PROMPT_STYLES)
@pytest.mark.parametrize(
    "hostile",
    [
        lambda n: " " * n + "x",
        lambda n: "<think>" * (n // 7),
        lambda n: "</think>" * (n // 8),
        lambda n: "<think>" + "</think>{" * (n // 9),
        lambda n: "<tool_call>" * (n // 11),
        lambda n: "<tool_call>{}</tool_call>" * (n // 25),
        lambda n: "<tool_call>" + " " * n,
        lambda n: "{" * n,
        lambda n: '{"a":' * (n // 5),
        lambda n: "{" + "[" * n,
        lambda n: '{"name": "' + "\\" * n,
        lambda n: '{"name": "' + '\\"' * (n // 2),
        lambda n: "{" + '"a":1,' * (n // 6),
        lambda n: "{" + ",".join(f'"{i}":1' for i in range(n // 9)) + "}",
        lambda n: '{"name": ' + "7" * n + "}",
        lambda n: '{"name": ' + "1e" * (n // 2),
        lambda n: '{"name": [' + ("7" * 4000 + ",") * (n // 4001),
        lambda n: '{"name": "search", "arguments": {"query": "x"}}' + "\n" * n + "{",
        lambda n: '{"name": "search", "arguments": {"query": "x"}}' + "<|eot_id|>\n" * (n // 11),
        lambda n: '{"name": "answer", "arguments": {"answer": "' + "x " * (n // 2) + '"}}',
    ],
)
def test_reading_takes_time_in_proportion(style, hostile):
    """Eight times the text may not take much more than eight times the time; CPU time, the best of some tries."""
    parse = SYNTAXES[style].parse

    def seconds(length):
        turn = hostile(length)
        best = float("inf")
        for _ in range(5):
            started = time.thread_time()
            for _ in range(2):
                with contextlib.suppress(MalformedCall):
                    parse(turn)
            best = min(best, time.thread_time() - started)
        return best

    assert seconds(64_000) < 14 * seconds(8_000) + 0.002


def test_a_page_without_end_is_cut():
    class Long:
        async def search(self, query):
            return "x" * 10_000_000

        visit = search

    episode = DeepSearchEnvironment(Long(), GoldAnswerScore(("a",)), SYNTAXES["none"], longest_observation=1000)
    found = asyncio.run(episode.step("<think> so</think><search> x</search>")).observation
    assert found == "x" * 994 + " (cut)"
