"""Text as token ids among which no control token is, whatever the text says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from megatron_empg.rollout.token_bound import TokenBound, TooManyTokens

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerBase

    from megatron_empg.rollout.chat_template import Piece


class TextTokens:
    """Encodes pieces of a conversation: control tokens are those of the template's own text and no others.

    `control`: the ids of control tokens, by their text. Many threads may use it at once.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, frames: Iterable[str]) -> None:
        """`frames`: what the template writes around messages. Raises ValueError for an unfit tokenizer."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(
                f"the tokenizer ({type(tokenizer).__name__}) has no tokenizer.json: save it as a fast tokenizer, "
                "`AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)`"
            )
        self._tokenizer, self._frames = tokenizer, tuple(frames)
        added = tokenizer.added_tokens_decoder
        found = {token.content: (number, token) for number, token in added.items()}
        used = "\n".join(self._frames)
        chosen = {text: pair for text, pair in found.items() if pair[1].special or _marks(text, used)}
        unknown = str(tokenizer.unk_token)
        if unknown not in used:  # stands for what cannot be spelled, in any text
            chosen.pop(unknown, None)
        self.control = {text: number for text, (number, _) in chosen.items()}
        self._tokens: dict[str, AddedToken] = {text: token for text, (_, token) in chosen.items()}
        self._ids = frozenset(self.control.values())
        self._boundary = _boundary(self.control)
        state = _without_control(backend, self._ids)
        self._plain, self._opening = _plain_and_opening(state)
        self._bound = TokenBound(self._plain, state)
        for text in self.control:
            self.encode_text(text)

    def with_frames(self, frames: Iterable[str]) -> TextTokens:
        """The same where the template also writes these around messages. Raises ValueError as the first one."""
        more = TextTokens(self._tokenizer, [*self._frames, *frames])
        if more.control == self.control:
            return self
        return more

    def control_in(self, text: str) -> list[str]:
        """The control tokens that the template's own text holds, in order."""
        if self._boundary is None:
            return []
        return self._boundary.findall(text)

    def encode(
        self, pieces: Iterable[Piece], *, most: int | None = None, known: dict[str, list[int]] | None = None
    ) -> list[int]:
        """Ids of a conversation. What stands between two control tokens is cut as one, wherever it is from.

        Raises TooManyTokens where there are certainly more than `most`, before any text is cut. `known`: ids of
        texts that were cut before, to which those of this conversation are added.
        """
        runs = list(self._runs(pieces))
        if most is not None:
            texts = [run for run in runs if isinstance(run, str)]
            control_tokens = len(runs) - len(texts)
            fewest = control_tokens + sum(map(self._bound.fewest, texts))
            if fewest > most:
                raise TooManyTokens(fewest, most)
        ids: list[int] = []
        for run in runs:
            if not isinstance(run, str):
                ids.append(run)
            elif known is None or not ids:
                ids += self.encode_text(run, opening=not ids)
            else:
                if run not in known:
                    known[run] = self.encode_text(run)
                ids += known[run]
        return ids

    def _runs(self, pieces: Iterable[Piece]) -> Iterator[str | int]:
        """Texts, and between them the ids of the control tokens."""
        run: list[str] = []
        eats_blanks = False
        for piece in pieces:
            if self._boundary is None:
                parts = [piece.text]
            else:
                parts = self._boundary.split(piece.text)
            if piece.message is not None:
                parts = [piece.text]
            # Every other part is a control token.
            for place, part in enumerate(parts):
                if place % 2:
                    token = self._tokens[part]
                    text = "".join(run)
                    yield text.rstrip() if token.lstrip else text
                    yield self.control[part]
                    run, eats_blanks = [], token.rstrip
                else:
                    run.append(part.lstrip() if eats_blanks and piece.message is None else part)
                    eats_blanks = eats_blanks and not part
        yield "".join(run)

    def encode_text(self, text: str, *, opening: bool = False) -> list[int]:
        """Ids of text among which none is a control token. `opening`: nothing stands before it."""
        if not text:
            return []
        if opening:
            plain = self._opening
        else:
            plain = self._plain
        try:
            encoding = plain.encode(text, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):  # half a surrogate pair, as JSON can spell it
            text = text.encode("utf-8", "replace").decode("utf-8")
            encoding = plain.encode(text, add_special_tokens=False)
        ids: list[int] = encoding.ids
        if self._ids.isdisjoint(ids):
            return ids
        return self._spelled(text, encoding)

    def _spelled(self, text: str, encoding: Any) -> list[int]:
        """Letter by letter where a tokenizer's model, not its list of added tokens, finds a control token."""
        ids: list[int] = []
        for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if number not in self._ids:
                ids.append(number)
                continue
            for letter in text[start:end]:
                ids += self._plain.encode(letter, add_special_tokens=False).ids
        if not self._ids.isdisjoint(ids):
            found = sorted(self._ids.intersection(ids))
            names = [name for name, number in self.control.items() if number in found]
            raise ValueError(f"the tokenizer cannot write {', '.join(map(repr, names))} but as a control token")
        return ids


def _boundary(control: Iterable[str]) -> re.Pattern[str] | None:
    """What finds a control token in a text, the longest that fits; None where there is none."""
    longest_first = sorted(control, key=len, reverse=True)
    if not longest_first:
        return None
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")


def _marks(text: str, used: str) -> bool:
    """Whether an added token that is not special marks messages all the same: a sign, not a word or blanks."""
    return text in used and any(not letter.isalnum() and not letter.isspace() for letter in text)


def _without_control(backend: Tokenizer, control: frozenset[int]) -> dict[str, Any]:
    """The tokenizer's JSON, with all control tokens marked as special ones."""
    state: dict[str, Any] = json.loads(backend.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["special"] or token["id"] in control
    return state


def _plain_and_opening(state: dict[str, Any]) -> tuple[Tokenizer, Tokenizer]:
    """The tokenizer with special tokens that are text like any other: behind a token, and at the beginning.

    The two differ where a mark of words (SentencePiece's) is put before the first word of the whole alone.
    """
    opening = [step for step in _steps(state["pre_tokenizer"]) if step.get("prepend_scheme") == "first"]
    if not opening:
        plain = _from_state(state)
        return plain, plain
    at_beginning = _from_state(state)
    for step in opening:
        step["prepend_scheme"] = "never"
    return _from_state(state), at_beginning


def _from_state(state: dict[str, Any]) -> Tokenizer:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    if pre_tokenizer is None:
        return []
    steps: list[dict[str, Any]] = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    return steps
