"""A prompt of the user's own: used as written, or refused by what is wrong with it."""

import pytest

from megatron_empg.environments.calls.prompt_file import LARGEST
from megatron_empg.environments.deep_search.prompt import syntax_for

GOOD = "---\nsyntax: tags\n---\nTurns: {max_turns}\n{tools}\n\n{example}\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "prompt.txt"

    def written(text):
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        return path

    return written


def test_its_places_are_filled(file):
    tags = syntax_for("tags")
    for text in (GOOD, GOOD.replace("\n", "\r\n"), "\ufeff" + GOOD):
        syntax = syntax_for(file(text))
        system, user = syntax.messages("who ?", 5)
        assert system == {
            "role": "system",
            "content": f"Turns: 5\n{tags.tool_lines()}\n\n{tags.example_lines()}",
        }
        assert user == {"role": "user", "content": "who ?"}
        assert syntax.reminder == tags.reminder
        assert (syntax.observation_role, syntax.template_tools) == ("user", ())


def test_a_file_that_asks_is_the_users_message(file):
    syntax = syntax_for(file(GOOD + "\nNow: {question}"))
    messages = syntax.messages("what of {tools} and {max_turns} ?", 5)
    assert [message["role"] for message in messages] == ["user"]
    assert messages[0]["content"].endswith("Now: what of {tools} and {max_turns} ?"), "a question is text"


def test_other_braces_are_text(file):
    syntax = syntax_for(file(GOOD + '{{tools}} {{other}} {"a": {"b": 1}} {} { x } {0} }{'))
    assert syntax.messages("q", 5)[0]["content"].endswith('{tools} {other} {"a": {"b": 1}} {} { x } {0} }{')


@pytest.mark.parametrize(("name", "key"), [("tools", "arguments"), ("tools_llama3", "parameters")])
def test_the_templates_calls_can_be_named(file, name, key):
    syntax = syntax_for(file(f"---\nsyntax: {name}\n---\nSearch well.\n{{example}}"))
    assert len(syntax.template_tools) == 3
    assert syntax.observation_role == "tool"
    assert f'"{key}": ' in syntax.messages("q", 5)[0]["content"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no header"),
        ("Just do it.", "has no header; begin it with the three lines"),
        ("---\nsyntax: tags\nno end", "has no header"),
        ("---\n---\n{tools}", "does not say the syntax"),
        ("---\nsyntax:\n---\n{tools}", "does not say the syntax"),
        ("---\nsyntax: xml\n---\n{tools}", "the syntax 'xml' is unknown; allowed: tags, tools, tools_llama3"),
        ("---\nsyntax: none\n---\n{tools}", "the syntax 'none' is unknown"),
        ("---\nsyntax: tags\nsyntax: tools\n---\n{tools}", "line 'syntax: tools' is not understood"),
        ("---\nsyntax: tags\ntitle: x\n---\n{tools}", "line 'title: x' is not understood"),
        ("---\nsyntax: tags\n---\n  \n", "has no text"),
        (GOOD + "{tool}", r"holds \{tool\}, which nothing fills; allowed: \{tools\}, \{example\}"),
        (GOOD + "{b} {a}", r"holds \{a\}, .*write \{\{a\}\} for the text itself"),
        ("---\nsyntax: tags\n---\nBe good.", "does not show how to call search, visit, answer"),
        (
            "---\nsyntax: tags\n---\n<think>t</think><search>w</search> <answer>a</answer>",
            "does not show how to call visit: .*<visit> title of a page</visit>",
        ),
        (
            "---\nsyntax: tags\n---\n<search>w</search> <visit>w</visit> <answer>a</answer>",
            "does not show how to call search, visit, answer",
        ),
        (
            "---\nsyntax: tags\n---\n<think></think></search><search><visit></visit><answer></answer>",
            "call search:",
        ),
        (b"---\nsyntax: tags\n---\nd\xe9j\xe0 {tools}", "is not UTF-8"),
        (GOOD + "x" * LARGEST, f"more than {LARGEST} bytes"),
    ],
)
def test_what_is_wrong_is_named_before_anything_runs(file, text, message):
    path = file(text)
    with pytest.raises(ValueError, match=message) as caught:
        syntax_for(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        syntax_for(tmp_path / "none.txt")
