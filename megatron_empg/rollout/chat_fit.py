"""Whether a chat template fits the way that a task uses it, found out by rendering small conversations.

Tools must be shown, results of tools written as they are, every message set off by control tokens, and earlier
turns must read as the run's `history` says: whole, or without their thoughts and otherwise whole.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_empg.rollout.chat_template import QUESTION, ChatTemplate, Piece, frames, joined
from megatron_empg.rollout.chat_use import ChatUse, HistoryKind
from megatron_empg.rollout.text_tokens import TextTokens
from megatron_empg.rollout.thoughts import (
    CLOSING,
    OPENING,
    ThoughtRule,
    blanks_taken,
    opens_thought,
    thought_probe,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from megatron_empg.environments.base import Message

_SAID = ("first", "second", "third")
_OPENED = f"{OPENING}\n"
_IN_THE_PROMPT = (
    "Say the tools in the prompt and let observations be user messages (environment.settings.prompt: tags), or "
    "give the model a template that knows tools"
)


@dataclass(frozen=True)
class ChatFit:
    """What a template does in a use. `strips`: it leaves the thoughts of earlier turns out by itself, as `rule`
    says; where it does not, `rule` is what `history` strip does. `opens_thought`: it begins a turn with a thought.

    `ahead` are the ids with which it begins the turn that is to come where earlier turns begin with `behind`.
    """

    text: TextTokens
    rule: ThoughtRule
    strips: bool
    opens_thought: bool
    ahead: tuple[int, ...]
    behind: tuple[int, ...]

    def as_history(self, token_ids: list[int]) -> list[int]:
        """Ids that end where a turn is to begin, as they read once that turn is an earlier one."""
        if self.ahead == self.behind:
            return list(token_ids)
        kept = len(token_ids) - len(self.ahead)
        if tuple(token_ids[kept:]) != self.ahead:
            raise ValueError("the chat template begins this turn differently from every other one")
        return [*token_ids[:kept], *self.behind]


def fitted(
    template: ChatTemplate,
    tokenizer: PreTrainedTokenizerBase,
    plain: TextTokens,
    use: ChatUse,
    history: HistoryKind,
) -> ChatFit:
    """The template in a use. `plain`: what encodes texts where there are no tools. Raises ValueError where it does
    not fit."""
    from jinja2 import TemplateError

    try:
        return _Fitting(template, tokenizer, plain, use).fit(history)
    except TemplateError as error:
        what = " and ".join([*(["tools"] if use.tools else []), f"observations of the role {use.role!r}"])
        raise ValueError(f"the chat template refuses {what}: {error}. {_IN_THE_PROMPT}") from error


class _Fitting:
    """A template under examination in one use."""

    def __init__(
        self, template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, plain: TextTokens, use: ChatUse
    ) -> None:
        self._template, self._tokenizer, self._use = template, tokenizer, use
        if use.tools:
            self._check_tools_are_shown()
        whole = template.pieces(self._conversation(_SAID), use)
        # As in a conversation without tools, what begins the turn that is to come says nothing of messages.
        self._text = plain
        if use.role == "tool":
            results = template.pieces(self._conversation(_SAID), ChatUse(use.role))
            self._text = plain.with_frames(frames(results[:-1]))
        if use.tools:
            self._check_tools_are_text()
        check_seams(frames(whole[1:]), self._text)
        self._check_pieces()
        begins = template.pieces([QUESTION], use)[-1].text
        self._ahead, self._behind = _after_common(begins, _after(whole, 0))
        self._opens = opens_thought(begins)
        self._begins, self._began = begins, _after(whole, 0)

    def fit(self, history: HistoryKind) -> ChatFit:
        whole_thoughts = [f"{word}\n{CLOSING}\n\n{word} said" for word in _SAID]
        if not self._opens:
            whole_thoughts = [_OPENED + turn for turn in whole_thoughts]
        keeps = self._appended(whole_thoughts) == self._rendered(whole_thoughts)
        rule: ThoughtRule | None = ThoughtRule()
        if not keeps:
            rule = self._rule()
        if history == "keep":
            self._check_kept(keeps, rule)
        else:
            self._check_stripped(whole_thoughts, keeps, rule or ThoughtRule())
        ahead, behind = self._ids(self._begins), self._ids(self._began)
        common = _common(ahead, behind)
        return ChatFit(
            self._text,
            rule or ThoughtRule(),
            strips=not keeps,
            opens_thought=self._opens,
            ahead=tuple(ahead[common:]),
            behind=tuple(behind[common:]),
        )

    def _conversation(self, said: Sequence[str]) -> list[Message]:
        conversation = [QUESTION]
        for number, turn in enumerate(said):
            conversation.append({"role": "assistant", "content": turn})
            conversation.append({"role": self._use.role, "content": f"seen {number}"})
        return conversation

    def _rendered(self, said: Sequence[str]) -> str:
        return self._template.render(self._conversation(said), self._use)

    def _appended(self, shown: Sequence[str], *, as_history: bool = False) -> str:
        """The same conversation, made of pieces. `as_history`: turns begin as earlier ones do."""
        text = joined(self._template.pieces([QUESTION], self._use))
        for number, turn in enumerate(shown):
            if as_history:
                text = text[: len(text) - len(self._ahead)] + self._behind
            text += turn + joined(self._template.after_turn(f"seen {number}", self._use))
        return text

    def _rule(self) -> ThoughtRule | None:
        """What the template does with thoughts of earlier turns; None for something that we could not do."""
        mark = secrets.token_hex(16)
        around = self._rendered([mark, "turn"])
        before, _, after = around.partition(mark)
        shown = self._rendered([thought_probe(), "turn"])
        if not (shown.startswith(before) and shown.endswith(after)):
            return None
        blanks = blanks_taken(shown[len(before) : len(shown) - len(after)])
        if blanks is None:
            return None
        cut = "thought"
        if not self._opens:
            cut = f"{_OPENED}thought"
        return ThoughtRule(blanks, keeps_open=self._rendered([cut, "turn"]) == around.replace(mark, cut))

    def _check_kept(self, keeps: bool, rule: ThoughtRule | None) -> None:
        plain = self._opens or self._appended(_SAID) == self._rendered(_SAID)
        if keeps and plain:
            return
        if keeps or rule is None:
            raise _changes()
        raise ValueError(
            f"the chat template leaves the thoughts ({OPENING} to {CLOSING}) of earlier turns out where "
            f"observations are {self._use.role} messages, so what the policy reads could not grow by appending, "
            "as with rollout.history: keep. Set rollout.history: strip (sft.history for a warm-up), or give the "
            "model a template that keeps them"
        )

    def _check_stripped(self, whole_thoughts: list[str], keeps: bool, rule: ThoughtRule) -> None:
        """Earlier turns without their thoughts must be what the template makes of them."""
        cut = f"{'' if self._opens else _OPENED}thought"
        for said in (whole_thoughts, _SAID, [*whole_thoughts[:1], cut, "third"]):
            shown = [rule.cut(turn, opened=self._opens) for turn in said]
            if self._appended(shown, as_history=True) != self._rendered(shown if keeps else said):
                raise _changes()

    def _check_tools_are_shown(self) -> None:
        names = self._use.names
        shown = self._template.render([QUESTION], self._use)
        without = self._template.render([QUESTION])
        missing = [name for name in names if name not in shown]
        if missing or shown == without:
            raise ValueError(
                f"the chat template leaves out tools of the task ({', '.join(missing or names)}). {_IN_THE_PROMPT}"
            )

    def _check_tools_are_text(self) -> None:
        """The control tokens of a prompt are the same, whatever the schemas say."""
        signs = {sign for text in self._text.control for sign in text if not sign.isalnum() and sign != "_"}
        plainer = self._use.with_plain_text("".join(signs))
        found, expected = (
            self._text.control_in(self._template.render([QUESTION], use)) for use in (self._use, plainer)
        )
        if found != expected:
            surplus = [text for text in found if found.count(text) > expected.count(text)]
            raise ValueError(
                f"the schemas in task.tools hold the control token {(surplus or found)[0]!r}, with which the chat "
                "template sets messages apart: take it out of their names and descriptions"
            )

    def _check_pieces(self) -> None:
        """Pieces must be cut into tokens as the whole is."""
        whole = self._rendered(_SAID)
        pieces = self._template.pieces(self._conversation(_SAID), self._use)
        if self._text.encode(pieces) != self._tokenizer(whole, add_special_tokens=False)["input_ids"]:
            raise unfit_pieces()

    def _ids(self, frame: str) -> list[int]:
        return self._text.encode([Piece(frame)])


def check_seams(seams: Sequence[str], text: TextTokens) -> None:
    """Check that a control token, which no text can be, stands between any two messages. Raises ValueError."""
    for seam in seams:
        if not text.control_in(seam):
            raise ValueError(
                f"the chat template sets one message off from the next by ordinary text ({seam!r}), which any "
                "page could hold too. Use a template that sets every message off by a special token."
            )


def unfit_pieces() -> ValueError:
    """The error for a tokenizer that splits pieces differently from the whole text."""
    return ValueError(
        "the tokenizer cuts the text between two special tokens differently where it stands alone, so "
        "that an episode cannot be built from pieces. Use a tokenizer whose special tokens are matched as "
        "written (normalized: false)."
    )


def _changes() -> ValueError:
    return ValueError(
        "the chat template renders earlier turns, or their thoughts, in a way of its own that a conversation in "
        "tokens cannot follow. Use a template that keeps every turn as it is, or one that leaves out everything "
        f"up to {CLOSING} and the blanks behind it"
    )


def _after(pieces: Sequence[Piece], message: int) -> str:
    """The template's own text behind what a message says."""
    place = [piece.message for piece in pieces].index(message)
    return pieces[place + 1].text


def _after_common(first: str, second: str) -> tuple[str, str]:
    common = _common(first, second)
    return first[common:], second[common:]


def _common(first: Sequence[object], second: Sequence[object]) -> int:
    """How many of their first items are the same."""
    for place, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return place
    return min(len(first), len(second))
