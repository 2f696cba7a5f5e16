"""The system message: what the tools are, how a turn is written, and one worked example.

A policy that was warmed up on this environment's walkthroughs knows all of it and does without
(`prompt: none`). Any other would never write a call that can be read, and so never be rewarded.
"""

from typing import Literal, get_args

from megatron_empg.environments.deep_search.actions import Call, format_action

PromptStyle = Literal["tags", "none"]
PROMPT_STYLES: tuple[PromptStyle, ...] = get_args(PromptStyle)

REMINDER = (
    " ; write <think> thought</think> and then <search> words</search> or <visit> title</visit> or "
    "<answer> answer</answer> , and nothing after it"
)
"""Ends the observation that a malformed turn gets."""

EXAMPLE_QUESTION = "what is the birthplace of the author of the hobbit ?"
EXAMPLE: tuple[tuple[str, Call, str | None], ...] = (
    (
        "need the author",
        Call("search", "author the hobbit"),
        "found the hobbit : a novel of 1937 . also bilbo baggins",
    ),
    (
        "the page should name the author",
        Call("visit", "the hobbit"),
        "page : the author of the hobbit is j. r. r. tolkien .",
    ),
    (
        "now the birthplace",
        Call("search", "birthplace j. r. r. tolkien"),
        "found j. r. r. tolkien : he was born in bloemfontein .",
    ),
    ("answer found", Call("answer", "bloemfontein"), None),
)
"""(thought, call, observation) turns; the last one answers."""

_RULES = """\
Answer the question by looking things up. Write one turn at a time and wait for its result. A turn is one short \
thought and then one call, in tags, with nothing after it:
{search}
{visit}
{answer}
search shows the first sentence of the best page for your words, and the title of another page. visit shows the \
whole page of that title. answer ends the task; give the name or number alone. You have {turns}, the \
answer's included.

Example. Question: {question}
{example}"""


def system_message(max_turns: int) -> str:
    """What the policy is told before the question, when it has `max_turns` turns for it."""
    example: list[str] = []
    for thought, call, observation in EXAMPLE:
        example.append(format_action(thought, call))
        if observation is not None:
            example.append(f"Result: {observation}")
    return _RULES.format(
        search=format_action("what to find out next", Call("search", "words to look for")),
        visit=format_action("which page should tell it", Call("visit", "title of a page")),
        answer=format_action("why this is the answer", Call("answer", "the answer")),
        turns="1 turn" if max_turns == 1 else f"at most {max_turns} turns",
        question=EXAMPLE_QUESTION,
        example="\n".join(example),
    )
