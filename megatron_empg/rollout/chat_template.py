"""A chat template's own text apart from the text that it is given.

The template never sees foreign text: it renders random marks in its place, and the text is put in afterwards. So
no page can move a seam, whatever it holds, nor can a template be made to take it for something else.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from megatron_empg.environments.base import Message

TODAY = datetime(2024, 7, 26)
"""The day that every template is told. A prompt that followed the clock would change at midnight, inside a run."""


class Piece(NamedTuple):
    """A stretch of a rendered conversation: the template's own text, or (part of) a message's content.

    `message`: the index of the message whose content it is; None for the template's own.
    """

    text: str
    message: int | None = None


class ChatTemplate:
    """Renders conversations as pieces."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises ValueError for a tokenizer without a template."""
        if not tokenizer.chat_template:
            raise ValueError("the tokenizer has no chat template: add chat_template.jinja to its folder")
        self._tokenizer = tokenizer

    def pieces(self, messages: Sequence[Message], *, as_is: Collection[str] = ()) -> list[Piece]:
        """A conversation, up to where the assistant begins to speak unless it has the last word.

        The template sees the contents of messages of the roles `as_is` themselves, and they count as its own text.
        Raises ValueError for a message that the template leaves out.
        """
        nonce = secrets.token_hex(16)
        shown: list[str] = []
        contents: dict[int, str] = {}
        for index, message in enumerate(messages):
            content = message["content"]
            text = content.strip()
            if text and message["role"] not in as_is:
                contents[index] = text
                # Blanks at the ends stay in sight, as a template may take them away.
                content = content.replace(text, f"{nonce}x{index}x", 1)
            shown.append(content)
        rendered = self.render([message["role"] for message in messages], shown)
        # Every other part is the index of a message.
        parts = re.split(f"{nonce}x([0-9]+)x", rendered)
        pieces = [
            Piece(contents[int(part)], int(part)) if place % 2 else Piece(part) for place, part in enumerate(parts)
        ]
        missing = contents.keys() - {piece.message for piece in pieces}
        if missing:
            role = messages[min(missing)]["role"]
            raise ValueError(
                f"the chat template leaves out or rewrites what a message of the role {role!r} says. Use a "
                "template that shows every message as it is"
            )
        return [piece for piece in pieces if piece.text]

    def after_turn(self, observation: str) -> list[Piece]:
        """From the end of an assistant turn, through an observation, to where the next turn begins."""
        conversation: list[Message] = [
            {"role": "user", "content": "question"},
            {"role": "assistant", "content": "turn"},
            {"role": "user", "content": observation},
        ]
        pieces = self.pieces(conversation)
        turn = [piece.message for piece in pieces].index(1)
        return pieces[turn + 1 :]

    def render(self, roles: Sequence[str], contents: Sequence[str]) -> str:
        """What the template makes of a conversation, on whatever day."""
        conversation = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        day: dict[str, Any] = {
            "strftime_now": TODAY.strftime,
            "date_string": TODAY.strftime("%d %b %Y"),
        }
        text = self._tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=roles[-1] != "assistant", **day
        )
        assert isinstance(text, str)
        return text
