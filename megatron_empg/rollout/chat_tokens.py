"""A chat template as pieces of token ids that are only ever appended.

What the policy sampled stays as it was sampled; the template supplies what stands before, between and around.
Everything else (questions, system texts, observations) is foreign: it can neither end a turn nor begin one, and
nothing of it is lost, as what reads like a control token becomes the ids of ordinary text.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_empg.rollout.chat_fit import ChatFit, check_seams, fitted, unfit_pieces
from megatron_empg.rollout.chat_template import QUESTION, ChatTemplate, Piece, frames, joined
from megatron_empg.rollout.chat_use import PLAIN, ChatUse, HistoryKind
from megatron_empg.rollout.text_tokens import TextTokens
from megatron_empg.rollout.thoughts import opens_thought

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from megatron_empg.environments.base import Message

_PLAIN: list[Message] = [QUESTION, {"role": "assistant", "content": "answer"}, QUESTION]
_PROBES = (("first", "seen first"), ("second", "seen second"), ("third", "seen third"))
_EMPTY_PROBES = (("first", ""), ("", "seen"), ("", ""))


class ChatTokens:
    """`end_of_turn`: the id with which an assistant turn ends (the policy's stop token). `history`: whether the
    policy reads the thoughts of its earlier turns again.

    Many threads may use it at once.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, history: HistoryKind = "keep") -> None:
        """Raises ValueError for a template that cannot be appended to turn by turn."""
        self._tokenizer = tokenizer
        self.history = history
        self._fits: dict[str, ChatFit] = {}
        self._fitting = threading.Lock()
        self._template = ChatTemplate(tokenizer)
        whole = self._conversation()
        # What begins the turn that is to come may be more than a mark of its beginning: it says nothing of turns.
        self._text = TextTokens(tokenizer, frames(whole[:-1]))
        self.end_of_turn = self._end_of_turn()
        if not opens_thought(whole[-1].text):  # its turns are thoughts, at which `fit` looks
            self._check_appending()
        check_seams(frames(whole[1:]), self._text)
        self._check_pieces()
        # A turn goes on where the template's last words end.
        self._lead_in = self._words_at_end(whole[-1].text)
        self._known = frozenset(tokenizer.get_vocab().values())

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, history: HistoryKind = "keep") -> ChatTokens:
        """Load them from a folder with tokenizer.json and a chat template."""
        from transformers import AutoTokenizer

        return cls(AutoTokenizer.from_pretrained(str(folder), local_files_only=True), history=history)

    def fit(self, use: ChatUse) -> ChatFit:
        """How the template fits a use. Raises ValueError where it does not: it ignores tools or lacks their
        role, or does something else with earlier thoughts than `history` says.

        The first call for a use takes a second or two with a large vocabulary, later ones nothing.
        """
        key = use.key
        known = self._fits.get(key)
        if known is not None:
            return known  # without the lock, which is held for seconds while another use is fitted
        with self._fitting:
            if key not in self._fits:
                self._fits[key] = fitted(self._template, self._tokenizer, self._text, use, self.history)
            return self._fits[key]

    def prompt(self, messages: Sequence[Message], use: ChatUse = PLAIN, *, most: int | None = None) -> list[int]:
        """Ids of a conversation, up to where the assistant begins to speak.

        Raises TooManyTokens where there are certainly more than `most`, which long texts tell by their length;
        there may be more without it.
        """
        return self._text_of(use).encode(self._template.pieces(messages, use), most=most)

    def between_turns(
        self, observation: str, use: ChatUse = PLAIN, *, cut: bool, most: int | None = None
    ) -> list[int]:
        """Ids from the end of one assistant turn to the start of the next.

        `cut`: the turn did not end itself, so its end token comes first; else the policy has sampled it. Raises
        TooManyTokens as `prompt` does.
        """
        left_out = 1
        if cut:
            left_out = 0
        if most is not None:
            most += left_out
        pieces = self._template.after_turn(observation, use)
        return self._text_of(use).encode(pieces, most=most)[left_out:]

    def as_history(self, token_ids: list[int], use: ChatUse = PLAIN) -> list[int]:
        """Ids that end where a turn is to begin, as they read once the turn is an earlier one.

        A template may open the thought of the turn that is to come, and not of earlier ones.
        """
        return self.fit(use).as_history(token_ids)

    def without_thought(self, token_ids: list[int], use: ChatUse = PLAIN) -> list[int]:
        """Ids of a turn as the policy reads it later under `history` strip; an end token stays."""
        fit = self.fit(use)
        if token_ids[-1:] == [self.end_of_turn]:
            end = [self.end_of_turn]
        else:
            end = []
        own = token_ids[: len(token_ids) - len(end)]
        return [*fit.rule.cut_ids(own, self.spelled, opened=fit.opens_thought), *end]

    def turn(self, text: str) -> list[int]:
        """Ids of an assistant turn that somebody else wrote, with its end token."""
        before, both = self._text.encode_text(self._lead_in), self._text.encode_text(self._lead_in + text)
        if both[: len(before)] == before:
            own = both[len(before) :]
        else:
            own = self._text.encode_text(text)
        return [*own, self.end_of_turn]

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

    def drift(self, token_ids: list[int], messages: Sequence[Message], use: ChatUse = PLAIN) -> int:
        """Tokens from the first one on that differs from the template's own rendering of the conversation.

        0 when all agree. `messages` end before an assistant turn, or with one that `token_ids` end with too.
        A policy that spells a word in pieces the tokenizer would have joined drifts; the ids stay its own.
        """
        pieces = self._template.pieces(messages, use, as_is=("assistant",))
        return _off(token_ids, self._text_of(use).encode(pieces))

    def drift_of_turns(
        self, sequences: Sequence[list[int]], messages: Sequence[Message], use: ChatUse = PLAIN
    ) -> int:
        """The same, summed over the sequences of an episode under `history` strip, one for each assistant turn.

        A sequence ends with its turn, and the messages that end a conversation after the last turn do not count.
        Of earlier turns the template is given everything, and cuts their thoughts itself; one that would keep them
        is given turns without.
        """
        fit = self.fit(use)
        known: dict[str, list[int]] = {}
        turns = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        turns = turns[len(turns) - len(sequences) :]
        told = list(messages)
        drift = 0
        for sequence, place in zip(sequences, turns, strict=True):
            pieces = self._template.pieces(told[:place], use, as_is=("assistant",))
            said = messages[place]["content"]
            drift += _off(sequence, fit.text.encode(pieces, known=known) + self.turn(said))
            if not fit.strips:
                told[place] = {"role": "assistant", "content": fit.rule.cut(said, opened=fit.opens_thought)}
        return drift

    def _text_of(self, use: ChatUse) -> TextTokens:
        if use == PLAIN:
            return self._text
        return self.fit(use).text

    def spelled(self, token_ids: Sequence[int]) -> str:
        """What ids say, control tokens too."""
        text = self._tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

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
        conversation = [QUESTION]
        appended = joined(self._template.pieces(conversation))
        for turn, observation in probes:
            appended += turn + joined(self._template.after_turn(observation))
            conversation += [
                {"role": "assistant", "content": turn},
                {"role": "user", "content": observation},
            ]
        return appended != self._template.render(conversation)

    def _check_pieces(self) -> None:
        """Pieces must be cut into tokens as the whole is."""
        whole = self._template.render(_PLAIN)
        if self.prompt(_PLAIN) != self._tokenizer(whole, add_special_tokens=False)["input_ids"]:
            raise unfit_pieces()


def _off(own: Sequence[int], rendered: Sequence[int]) -> int:
    """How many of the own ids follow the first that is another than the rendered one, with it."""
    for index, (mine, other) in enumerate(zip(own, rendered, strict=False)):
        if mine != other:
            return len(own) - index
    return max(0, len(own) - len(rendered))
