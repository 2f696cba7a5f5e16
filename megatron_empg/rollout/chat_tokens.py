"""A chat template as pieces of token ids that are only ever appended.

What the policy sampled stays as it was sampled; the template supplies what stands before, between and around.
Everything else (questions, system texts, observations) is foreign: it can neither end a turn nor begin one, and
nothing of it is lost, as what reads like a control token becomes the ids of ordinary text.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_empg.rollout.chat_template import ChatTemplate, Piece
from megatron_empg.rollout.text_tokens import TextTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from megatron_empg.environments.base import Message

_QUESTION: Message = {"role": "user", "content": "question"}
_PLAIN: list[Message] = [_QUESTION, {"role": "assistant", "content": "answer"}, _QUESTION]
_PROBES = (("first", "seen first"), ("second", "seen second"), ("third", "seen third"))
_EMPTY_PROBES = (("first", ""), ("", "seen"), ("", ""))


class ChatTokens:
    """`end_of_turn`: the id with which an assistant turn ends (the policy's stop token).

    Many threads may use it at once.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises ValueError for a template that cannot be appended to turn by turn."""
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer)
        whole = self._conversation()
        # What begins the turn that is to come may be more than a mark of its beginning: it says nothing of turns.
        self._text = TextTokens(tokenizer, _frames(whole[:-1]))
        self.end_of_turn = self._end_of_turn()
        self._check_appending()
        self._check_seams(_frames(whole[1:]))
        self._check_pieces()
        # A turn goes on where the template's last words end.
        self._lead_in = self._words_at_end(whole[-1].text)
        self._known = frozenset(tokenizer.get_vocab().values())

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ChatTokens:
        """From a folder with tokenizer.json and a chat template."""
        from transformers import AutoTokenizer

        return cls(AutoTokenizer.from_pretrained(str(folder)))

    def prompt(self, messages: Sequence[Message], *, most: int | None = None) -> list[int]:
        """Ids of a conversation, up to where the assistant begins to speak.

        Raises TooManyTokens where there are certainly more than `most`, which long texts tell by their length;
        there may be more without it.
        """
        return self._text.encode(self._template.pieces(messages), most=most)

    def between_turns(self, observation: str, *, cut: bool, most: int | None = None) -> list[int]:
        """Ids from the end of one assistant turn to the start of the next.

        `cut`: the turn did not end itself, so its end token comes first; else the policy has sampled it. Raises
        TooManyTokens as `prompt` does.
        """
        left_out = 0 if cut else 1
        pieces = self._template.after_turn(observation)
        return self._text.encode(pieces, most=None if most is None else most + left_out)[left_out:]

    def turn(self, text: str) -> list[int]:
        """Ids of an assistant turn that somebody else wrote, with its end token."""
        before, both = self._text.encode_text(self._lead_in), self._text.encode_text(self._lead_in + text)
        joins = both[: len(before)] == before
        return [*(both[len(before) :] if joins else self._text.encode_text(text)), self.end_of_turn]

    def text(self, token_ids: list[int]) -> str:
        """What the ids of a turn say, without special tokens.

        An id that the tokenizer does not have (a model's rows may be padded) is named, as `<|token 151900|>`.
        """
        if token_ids and token_ids[-1] == self.end_of_turn:
            token_ids = token_ids[:-1]
        if self._known.issuperset(token_ids):
            return self._decode(token_ids)
        said: list[str] = []
        start = 0
        for place, number in enumerate(token_ids):
            if number not in self._known:
                said += [self._decode(token_ids[start:place]), f"<|token {number}|>"]
                start = place + 1
        return "".join([*said, self._decode(token_ids[start:])])

    def drift(self, token_ids: list[int], messages: Sequence[Message]) -> int:
        """Tokens from the first one on that differs from the template's own rendering of the conversation.

        0 when all agree. `messages` end before an assistant turn, or with one that `token_ids` end with too.
        A policy that spells a word in pieces the tokenizer would have joined drifts; the ids stay its own.
        """
        rendered = self._text.encode(self._template.pieces(messages, as_is=("assistant",)))
        for index, (own, other) in enumerate(zip(token_ids, rendered, strict=False)):
            if own != other:
                return len(token_ids) - index
        return max(0, len(token_ids) - len(rendered))

    def _decode(self, token_ids: list[int]) -> str:
        text = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def _conversation(self) -> list[Piece]:
        """Of plain messages, a system message among them if the template takes one."""
        from jinja2 import TemplateError

        system: Message = {"role": "system", "content": "system"}
        try:
            return self._template.pieces([system, *_PLAIN])
        except (TemplateError, ValueError):
            return self._template.pieces(_PLAIN)

    def _words_at_end(self, frame: str) -> str:
        """The template's text after its last control token."""
        ends = [frame.rfind(text) + len(text) for text in self._text.control if text in frame]
        return frame[max(ends, default=0) :]

    def _end_of_turn(self) -> int:
        ids = self._text.encode(self._template.after_turn("observation"))
        if not ids or ids[0] not in self._text.control.values():
            shown = self._tokenizer.convert_ids_to_tokens(ids[:1])
            raise ValueError(f"the chat template ends a turn with {shown}, which is not a special token")
        return ids[0]

    def _check_appending(self) -> None:
        """Appending pieces must give what the template gives for the whole."""
        from jinja2 import TemplateError

        try:
            differs = self._differs(_PROBES)
        except TemplateError as error:
            raise ValueError(f"the chat template refuses a plain conversation: {error}") from error
        # One that refuses empty turns is never asked for them: what the policy said is appended, not rendered.
        with suppress(TemplateError):
            differs = differs or self._differs(_EMPTY_PROBES)
        if differs:
            raise ValueError(
                "the chat template renders earlier turns differently once later ones follow, or empty ones "
                "differently from others, so a conversation cannot grow by appending. Use a template that renders "
                "every message by itself."
            )

    def _differs(self, probes: Sequence[tuple[str, str]]) -> bool:
        conversation = [_QUESTION]
        appended = _joined(self._template.pieces(conversation))
        for turn, observation in probes:
            appended += turn + _joined(self._template.after_turn(observation))
            conversation += [
                {"role": "assistant", "content": turn},
                {"role": "user", "content": observation},
            ]
        roles = [message["role"] for message in conversation]
        return appended != self._template.render(roles, [message["content"] for message in conversation])

    def _check_seams(self, seams: Sequence[str]) -> None:
        """Between two messages there must be a control token, which no text can be."""
        for seam in seams:
            if not any(text in seam for text in self._text.control):
                raise ValueError(
                    f"the chat template sets one message off from the next by ordinary text ({seam!r}), which any "
                    "page could hold too. Use a template that sets every message off by a special token."
                )

    def _check_pieces(self) -> None:
        """Pieces must be cut into tokens as the whole is."""
        roles = [message["role"] for message in _PLAIN]
        whole = self._template.render(roles, [message["content"] for message in _PLAIN])
        if self.prompt(_PLAIN) != self._tokenizer(whole, add_special_tokens=False)["input_ids"]:
            raise ValueError(
                "the tokenizer cuts the text between two special tokens differently where it stands alone, so "
                "that an episode cannot be built from pieces. Use a tokenizer whose special tokens are matched as "
                "written (normalized: false)."
            )


def _frames(pieces: Sequence[Piece]) -> list[str]:
    return [piece.text for piece in pieces if piece.message is None]


def _joined(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)
