"""A chat template's own text apart from the text that it is given.

The template never sees foreign text: it renders random marks in its place, and the text is put in afterwards. So
no page can move a seam, whatever it holds, nor can a template be made to take it for something else.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from megatron_empg.rollout.chat_use import PLAIN, ChatUse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from megatron_empg.environments.base import Message

TODAY = datetime(2024, 7, 26)
"""The day that every template is told, in every run and evaluation. A prompt that followed the clock would change
at midnight, inside a run, and a policy would be asked on another day than it was trained on."""
QUESTION: Message = {"role": "user", "content": "question"}
"""What begins a conversation that is rendered to look at the template."""
_TOLD = 'a "b" \\ c\'s <d> & é 東\n\te'
"""A content that every way of writing it down changes in another way."""
_Written = Callable[[str], str]


class Piece(NamedTuple):
    """A stretch of a rendered conversation: the template's own text, or (part of) a message's content.

    `message`: the index of the message whose content it is; None for the template's own.
    """

    text: str
    message: int | None = None


def frames(pieces: Sequence[Piece]) -> list[str]:
    """The template's own texts."""
    return [piece.text for piece in pieces if piece.message is None]


def joined(pieces: Sequence[Piece]) -> str:
    """The whole text."""
    return "".join(piece.text for piece in pieces)


class ChatTemplate:
    """Renders conversations as pieces."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises ValueError for a tokenizer without a template."""
        if not tokenizer.chat_template:
            raise ValueError("the tokenizer has no chat template: add chat_template.jinja to its folder")
        self._tokenizer = tokenizer
        self._tool_results: _Written | None = None

    def pieces(
        self, messages: Sequence[Message], use: ChatUse = PLAIN, *, as_is: Collection[str] = ()
    ) -> list[Piece]:
        """A conversation, up to where the assistant begins to speak unless it has the last word.

        The template sees the contents of messages of the roles `as_is` themselves, and they count as its own text.
        Raises ValueError for a message that the template leaves out, and for one that says more than its content.
        """
        nonce = secrets.token_hex(16)
        shown: list[Message] = []
        contents: dict[int, str] = {}
        for index, message in enumerate(messages):
            _check_keys(message)
            content = message["content"]
            text = content.strip()
            if text and message["role"] not in as_is:
                contents[index] = self._written(message["role"])(text)
                # Blanks at the ends stay in sight, as a template may take them away.
                content = content.replace(text, f"{nonce}{index}x", 1)
            shown.append({"role": message["role"], "content": content})
        rendered = self.render(shown, use)
        # Each part but the first begins with the index of a message.
        first, *others = rendered.split(nonce)
        pieces = [Piece(first)]
        for part in others:
            number, mark, behind = part.partition("x")
            if mark and number.isdecimal() and int(number) in contents:
                pieces += [Piece(contents[int(number)], int(number)), Piece(behind)]
            else:  # the template cut the mark, so its message is missing below
                pieces.append(Piece(part))
        missing = contents.keys() - {piece.message for piece in pieces}
        if missing:
            raise _rewrites(messages[min(missing)]["role"])
        return [piece for piece in pieces if piece.text]

    def after_turn(self, observation: str, use: ChatUse = PLAIN) -> list[Piece]:
        """The pieces from the end of an assistant turn, through an observation, to the start of the next turn."""
        conversation: list[Message] = [
            QUESTION,
            {"role": "assistant", "content": "turn"},
            {"role": use.role, "content": observation},
        ]
        pieces = self.pieces(conversation, use)
        turn = [piece.message for piece in pieces].index(1)
        return pieces[turn + 1 :]

    def render(self, messages: Sequence[Message], use: ChatUse = PLAIN) -> str:
        """What the template makes of a conversation, on whatever day."""
        conversation: Any = list(messages)
        day: dict[str, Any] = {
            "strftime_now": TODAY.strftime,
            "date_string": TODAY.strftime("%d %b %Y"),
        }
        if use.tools:
            day["tools"] = list(use.tools)
        text = self._tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=messages[-1]["role"] != "assistant", **day
        )
        assert isinstance(text, str)
        return text

    def _written(self, role: str) -> _Written:
        """How the template writes what messages of a role say. Results of tools may be written as JSON."""
        if role != "tool":
            return _as_it_is
        if self._tool_results is None:
            self._tool_results = self._way_of_writing("tool")
        return self._tool_results

    def _way_of_writing(self, role: Literal["tool"]) -> _Written:
        nonce = secrets.token_hex(16)
        rendered = self.render(
            [
                QUESTION,
                {"role": "assistant", "content": "turn"},
                {"role": role, "content": f"{nonce}{_TOLD}{nonce}"},
            ]
        )
        found = rendered.split(nonce)[1:-1]
        for way in (_as_it_is, _as_json, _as_ascii_json):
            if found == [way(_TOLD)]:
                return way
        raise _rewrites(role)


def _check_keys(message: Message) -> None:
    """A template would show more than we give it, such as `tool_calls`, and nobody would miss it."""
    surplus = sorted(set(message) - {"role", "content"})
    if surplus:
        raise ValueError(
            f"a message of the role {message['role']!r} has {', '.join(surplus)}, which would be dropped: say it "
            "in its content, as the template would write it"
        )


def _rewrites(role: str) -> ValueError:
    return ValueError(
        f"the chat template leaves out or rewrites what a message of the role {role!r} says. Use a template that "
        "shows every message as it is"
    )


def _as_it_is(text: str) -> str:
    return text


def _as_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _as_ascii_json(text: str) -> str:
    return json.dumps(text)[1:-1]
