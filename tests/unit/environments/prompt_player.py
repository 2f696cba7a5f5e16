"""A player that knows what to look up and nothing of how a call is written: that it takes from the prompt alone.

In a message it aligns the line that introduces a tool with a turn of the worked example: what both share is
syntax, and where they differ are the places of thought and argument. In what a chat template renders it reads the
tools' schemas and the format that the template's instructions show.
"""

import difflib
import json
import re
from dataclasses import dataclass

from megatron_empg.environments.deep_search.corpus import Corpus
from megatron_empg.environments.deep_search.environment import DeepSearchEnvironment

PURPOSES = ("search", "visit", "answer")
_TOKEN = re.compile(r"\w+|\s+|[^\w\s]")
_FORMAT = re.compile(r'\{"(\w+)": [^,{}"]+, "(\w+)": [^{}"]+\}')


@dataclass(frozen=True)
class Form:
    """What stands before the thought, between it and the argument, and after that."""

    before: str
    between: str
    after: str
    quoted: bool = False

    def turn(self, thought: str, argument: str) -> str:
        value = json.dumps(argument, ensure_ascii=False) if self.quoted else argument
        return f"{self.before}{thought}{self.between}{value}{self.after}"


def forms_in_message(message: str) -> dict[str, Form]:
    """How each tool is called, as far as the message tells."""
    introduced, _, worked = message.partition("Question:")
    forms = {}
    for tool in PURPOSES:
        marked = re.compile(rf"[^\w\s]{tool}[^\w\s]")
        introduction = [line for line in introduced.splitlines() if marked.search(line)]
        turns = [line for line in worked.splitlines() if marked.search(line)]
        if introduction and turns:
            forms[tool] = _shared(_TOKEN.findall(introduction[0]), _TOKEN.findall(turns[0]))
    return forms


def _shared(one: list[str], other: list[str]) -> Form:
    begin = 0
    while one[begin] == other[begin]:
        begin += 1
    end = 0
    while one[-1 - end] == other[-1 - end]:
        end += 1
    one_inside, other_inside = one[begin : len(one) - end], other[begin : len(other) - end]
    matcher = difflib.SequenceMatcher(None, one_inside, other_inside, autojunk=False)
    match = matcher.find_longest_match()
    between = one_inside[match.a : match.a + match.size]
    return Form("".join(one[:begin]), "".join(between), "".join(one[len(one) - end :]))


def forms_in_rendering(rendered: str) -> dict[str, Form]:
    """How each tool is called, from schemas and the format that a template shows."""
    found = _FORMAT.search(rendered)
    if found is None:
        return {}
    lines = rendered.splitlines()
    number = rendered.count("\n", 0, found.start())
    before, after = "", ""
    if lines[number].strip() == found[0]:
        # The format stands alone on its line: the lines around it are part of it.
        before = "\n" + lines[number - 1] + "\n"
        after = "\n" + re.sub(r"<\|.*?\|>.*", "", lines[number + 1])
    forms = {}
    for name, argument in _schemas(rendered).items():
        call = f'{before or chr(10)}{{"{found[1]}": "{name}", "{found[2]}": {{"{argument}": '
        forms[name] = Form("", call, "}}" + after, quoted=True)
    return forms


def _schemas(rendered: str) -> dict[str, str]:
    """{tool: its argument}."""
    schemas = {}
    for match in re.finditer(r"^\{", rendered, re.MULTILINE):
        try:
            schema, _ = json.JSONDecoder().raw_decode(rendered, match.start())
        except ValueError:
            continue
        if "function" in schema:
            function = schema["function"]
            schemas[function["name"]] = next(iter(function["parameters"]["properties"]))
    return schemas


async def play(episode: DeepSearchEnvironment, forms: dict[str, Form], task, corpus: Corpus, max_turns=8) -> float:
    """The reward. It visits titles that a search showed, takes what a page says, and answers with the last."""
    await episode.reset()
    reward, turns, done = 0.0, 0, False

    async def act(tool: str, argument: str) -> str:
        nonlocal reward, turns, done
        if done or turns == max_turns:
            return ""
        turns += 1
        # Without a form it says what it wants in plain words.
        action = forms[tool].turn("so", argument) if tool in forms else f"{tool} {argument}"
        result = await episode.step(action)
        reward += result.reward
        done = result.done
        return result.observation or ""

    entity = task.payload["entity"]
    for relation in task.payload["relations"]:
        found = await act("search", f"{relation} {entity}")
        page = corpus.located.get((entity, relation))
        if page is None or page.title not in found:
            break
        shown = await act("visit", page.title)
        told = corpus.facts[entity][relation].object
        if told not in shown:
            break
        entity = told
    await act("answer", entity)
    return reward
