"""Turns in tags, over whatever tools take one text."""

import pytest

from megatron_empg.environments.calls.base import Example, MalformedCall, Tool, ToolCall, text_tool
from megatron_empg.environments.calls.tags import Tags
from megatron_empg.environments.deep_search.agent_tools import ANSWER, SEARCH, VISIT
from megatron_empg.environments.deep_search.prompt import EXAMPLE, syntax_for

WEIGH = text_tool("weigh", "shows a weight.", "thing", thought="how heavy", example="a thing", short="thing")


def test_its_texts_are_those_that_policies_were_trained_with():
    """To the letter: a policy that was warmed up on them must not meet others."""
    tags = syntax_for("tags")
    lines = tags.messages("who ?", 8)[0]["content"].splitlines()
    assert lines[0].endswith(" and then one call, in tags, with nothing after it:")
    assert lines[1:4] == [
        "<think> what to find out next</think><search> words to look for</search>",
        "<think> which page should tell it</think><visit> title of a page</visit>",
        "<think> why this is the answer</think><answer> the answer</answer>",
    ]
    assert lines[4] == (
        "search shows the first sentence of the best page for your words, and the title of another page. visit "
        "shows the whole page of that title. answer ends the task; give the name or number alone. You have "
        "at most 8 turns, the answer's included."
    )
    assert lines[5:8] == ["", f"Example. Question: {EXAMPLE.question}", lines[7]]
    assert lines[-1] == "<think> answer found</think><answer> bloemfontein</answer>"
    assert tags.reminder == (
        " ; write <think> thought</think> and then <search> words</search> or <visit> title</visit> or "
        "<answer> answer</answer> , and nothing after it"
    )
    with pytest.raises(MalformedCall) as caught:
        tags.parse("lima")
    assert str(caught.value) == "malformed call : think , then one search , visit or answer"


def test_other_tools_are_told_and_read():
    tags = Tags([SEARCH, WEIGH], Example("q", ()))
    assert "<weigh> a thing</weigh>" in tags.tool_lines()
    assert tags.parse("<think> so</think><weigh> a\n feather </weigh>") == ToolCall(
        "weigh", {"thing": "a feather"}
    )
    with pytest.raises(MalformedCall, match="one search or weigh"):
        tags.parse("<think> so</think><visit> x</visit>")


@pytest.mark.parametrize("argument", ["a < b", "a > b", "<b>", "a</answer>b"])
def test_an_argument_holds_no_angle_bracket(argument):
    with pytest.raises(MalformedCall, match="think , then one"):
        syntax_for("tags").parse(f"<think> so</think><answer> {argument}</answer>")


def test_line_breaks_of_an_argument_are_blanks():
    read = syntax_for("none").parse("<think> a\nb</think>\n<answer>\n new\r\n\tyork\u2028city\n</answer>")
    assert read == ToolCall("answer", {"answer": "new york city"})


@pytest.mark.parametrize("tool", [SEARCH, VISIT, ANSWER], ids=lambda tool: tool.name)
def test_what_is_written_is_read(tool):
    tags = syntax_for("tags")
    call = ToolCall(tool.name, {next(iter(tool.properties)): "two words"})
    assert tags.parse(tags.write("so it is", call)) == call


@pytest.mark.parametrize(
    "properties",
    [
        {},
        {"n": {"type": "integer"}},
        {"a": {"type": "string"}, "b": {"type": "string"}},
    ],
)
def test_tools_that_tags_cannot_hold_are_refused(properties):
    tool = Tool("odd", "does it.", {"type": "object", "properties": properties}, "so", {}, {})
    with pytest.raises(ValueError, match=r"the tool odd takes .*tags hold one text"):
        Tags([tool], Example("q", ()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a b"}, "a tool is named 'a b'"),
        ({"name": ""}, "a tool is named ''"),
        ({"parameters": {}}, "parameters of the tool search are no JSON schema"),
        (
            {"parameters": {"type": "object", "properties": {"q": {"type": "array"}}}},
            "'q' .* has the type 'array'",
        ),
        ({"parameters": {"type": "object", "properties": {}, "required": ["q"]}}, "no argument 'q'"),
        ({"example": {"words": "x"}}, "no argument 'words'"),
    ],
)
def test_a_tool_that_no_call_could_name_is_refused(changes, message):
    fields = vars(SEARCH) | {"example": {}, "short": {}} | changes
    with pytest.raises(ValueError, match=message):
        Tool(**fields)
