"""What a policy can call in Deep Search, as it is told."""

from __future__ import annotations

from typing import Literal

from megatron_empg.environments.calls.base import text_tool

ToolName = Literal["search", "visit", "answer"]

# The descriptions say what the miniature's search shows; another search is told by dataclasses.replace.
SEARCH = text_tool(
    "search",
    "shows the first sentence of the best page for your words, and the title of another page.",
    "query",
    thought="what to find out next",
    example="words to look for",
    short="words",
)
VISIT = text_tool(
    "visit",
    "shows the whole page of that title.",
    "title",
    thought="which page should tell it",
    example="title of a page",
    short="title",
)
ANSWER = text_tool(
    "answer",
    "ends the task; give the name or number alone.",
    "answer",
    thought="why this is the answer",
    example="the answer",
    short="answer",
    ends=True,
)
TOOLS = (SEARCH, VISIT, ANSWER)

ARGUMENT: dict[ToolName, str] = {"search": "query", "visit": "title", "answer": "answer"}
"""The one argument of each."""
