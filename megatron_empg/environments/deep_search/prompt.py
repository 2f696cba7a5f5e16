"""What the policy is told, and in which syntax it calls: `syntax_for` makes both of the setting `prompt`.

A policy that was warmed up on this environment's walkthroughs knows all of it and does without
(`prompt: none`). Any other would never write a call that can be read, and so never be rewarded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from megatron_empg.environments.calls.base import CallSyntax, Example, ExampleTurn, Tool
from megatron_empg.environments.calls.prompt_file import PromptFile
from megatron_empg.environments.calls.tags import Tags
from megatron_empg.environments.calls.template_calls import TemplateCalls
from megatron_empg.environments.deep_search.actions import SearchToolCall
from megatron_empg.environments.deep_search.agent_tools import TOOLS

PromptStyle = Literal["tags", "none", "tools", "tools_llama3"]
PROMPT_STYLES: tuple[PromptStyle, ...] = get_args(PromptStyle)

EXAMPLE_QUESTION = "what is the birthplace of the author of the hobbit ?"
EXAMPLE = Example(
    EXAMPLE_QUESTION,
    (
        ExampleTurn(
            "need the author",
            SearchToolCall("search", "author the hobbit").general,
            "found the hobbit : a novel of 1937 . also bilbo baggins",
        ),
        ExampleTurn(
            "the page should name the author",
            SearchToolCall("visit", "the hobbit").general,
            "page : the author of the hobbit is j. r. r. tolkien .",
        ),
        ExampleTurn(
            "now the birthplace",
            SearchToolCall("search", "birthplace j. r. r. tolkien").general,
            "found j. r. r. tolkien : he was born in bloemfontein .",
        ),
        ExampleTurn("answer found", SearchToolCall("answer", "bloemfontein").general, None),
    ),
)
"""The last turn answers. Where there is no visit, the search itself shows what the page says."""


def syntax_for(
    prompt: PromptStyle | Path, *, tools: Sequence[Tool] = TOOLS, example: Example | None = None
) -> CallSyntax:
    """The syntax of a style, or of a prompt file where `prompt` is a path. Make it once for a task source.

    A task then is ``Task(prompt=syntax.messages(question, limits.max_turns), tools=syntax.template_tools,
    observation_role=syntax.observation_role, gold=gold_action(thought, answer, syntax), ...)``, its episode
    ``DeepSearchEnvironment(tools, score, syntax)``, and a scripted turn ``format_action(thought, call, syntax)``.

    `tools`: those that the search engine offers, as the policy is told of them; without VISIT for a service that
    has no such route. `example`: one with another engine's observations. Raises OSError or ValueError for a file
    that cannot be used, ValueError for an unknown style.
    """
    shown = _without_missing_tools(EXAMPLE if example is None else example, tools)
    if isinstance(prompt, Path):
        return PromptFile(prompt, lambda name: _named(name, _FILE_SYNTAXES, tools, shown))
    return _named(prompt, PROMPT_STYLES, tools, shown)


_FILE_SYNTAXES: tuple[PromptStyle, ...] = ("tags", "tools", "tools_llama3")


def _named(name: str, allowed: Sequence[str], tools: Sequence[Tool], example: Example) -> CallSyntax:
    if name not in allowed:
        raise ValueError(f"the syntax {name!r} is unknown; allowed: {', '.join(allowed)}")
    if name in ("tags", "none"):
        return Tags(tools, example, told=name == "tags")
    return TemplateCalls(tools, example, form="llama3" if name == "tools_llama3" else "hermes")


def _without_missing_tools(example: Example, tools: Sequence[Tool]) -> Example:
    """The example as it goes with these tools alone: the result of a call that is not there comes from the call
    before."""
    names = {tool.name for tool in tools}
    turns: list[ExampleTurn] = []
    for turn in example.turns:
        if turn.call.tool in names:
            turns.append(turn)
        elif turns and turn.observation is not None:
            before = turns.pop()
            turns.append(
                ExampleTurn(before.thought, before.call, turn.observation.replace("page :", "found :", 1))
            )
    return Example(example.question, tuple(turns))
