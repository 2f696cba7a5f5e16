"""A text never has fewer tokens than its length says, whatever the tokenizer does to it."""

import json
import sys
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from megatron_empg.rollout.chat_tokens import ChatTokens
from megatron_empg.rollout.text_tokens import TextTokens
from megatron_empg.rollout.token_bound import COMPOSED, TooManyTokens
from tests.support.tokenizers_for_tests import ORDINARY, make_sentencepiece, make_tokenizer

Change = Callable[[Tokenizer], None]
FOUR_IN_ONE = "\u03b1\u0313\u0300\u0345"
"""NFC makes one character of them."""


def changed(tokenizer: Any, change: Change) -> Any:
    change(tokenizer.backend_tokenizer)
    return tokenizer


def text_of(tokenizer: Any) -> TextTokens:
    return TextTokens(tokenizer, ["<|im_start|><|im_end|>"])


def normalized(step: Any) -> Change:
    return lambda tokenizer: setattr(tokenizer, "normalizer", step)


def in_words(step: Any) -> Change:
    return lambda tokenizer: setattr(tokenizer, "pre_tokenizer", step)


def byte_level(change: Change = lambda tokenizer: None) -> TextTokens:
    return text_of(changed(make_tokenizer("chatml", ordinary=ORDINARY), change))


SEQUENCE = normalizers.Sequence([normalizers.NFC(), normalizers.Sequence([normalizers.NFKC()])])
MARKS = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
SPLIT = pre_tokenizers.Split(" ", "merged_with_previous")
BOUNDED = {
    "byte-level": byte_level(),
    "NFC": byte_level(normalized(normalizers.NFC())),
    "NFKD": byte_level(normalized(normalizers.NFKD())),
    "NFC and NFKC": byte_level(normalized(SEQUENCE)),
    "long token": byte_level(lambda tokenizer: tokenizer.add_tokens([AddedToken("ab" * 30), AddedToken("ﷺ" * 3)])),
    "byte fallback": text_of(make_sentencepiece("zephyr", "bpe", "always")),
    "marks by the normalizer": text_of(
        changed(changed(make_sentencepiece("gemma", "bpe", "never"), normalized(MARKS)), in_words(SPLIT))
    ),
}
parts = st.sampled_from([
    *("capital of", " ", "        ", "é", FOUR_IN_ONE, "東京", "ﷺ", "\u212a", "각", "<|im_end|>", "</s>", "\n"),
    *("<think>", "ab" * 30, "\ud800", "𝐀", "\x00", "\u1100\u1161\u11a8"),
])  # fmt: skip
texts = st.one_of(st.lists(parts, max_size=30).map("".join), st.text(), parts.map(lambda part: part * 200))


@pytest.mark.parametrize("name", BOUNDED)
@settings(max_examples=150, deadline=None)
@given(text=texts)
def test_no_text_has_fewer_tokens(name: str, text: str) -> None:
    encoder = BOUNDED[name]
    for opening in (False, True):
        assert encoder._bound.fewest(text) <= len(encoder.encode_text(text, opening=opening))
    assert (encoder._bound.fewest(text) > 0) == bool(text)


def test_a_text_of_the_longest_tokens_has_as_few() -> None:
    """So the bound could not be higher."""
    encoder = BOUNDED["long token"]
    text = "ab" * 30 * 50
    assert encoder._bound.fewest(text) == len(encoder.encode_text(text)) == 50


def test_a_normalizer_that_composes_takes_four_characters_for_one_where_text_is_not_ascii() -> None:
    composing, plain = BOUNDED["NFC"]._bound, BOUNDED["byte-level"]._bound
    for text, share in ((FOUR_IN_ONE * 2500, 4), ("capital " * 2500, 1)):
        assert composing.fewest(text) == pytest.approx(plain.fewest(text) / share, abs=1)


def test_no_character_is_composed_of_more() -> None:
    letters = (chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000)
    longest = max(len(unicodedata.normalize("NFD", letter)) for letter in letters)
    assert longest == COMPOSED == len(FOUR_IN_ONE)
    assert len(unicodedata.normalize("NFC", FOUR_IN_ONE)) == 1


def word_level() -> Any:
    tokenizer = make_tokenizer("chatml")
    words = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "[UNK]": 3}
    tokenizer.backend_tokenizer.model = models.WordLevel(words, unk_token="[UNK]")
    return tokenizer


def missing_byte() -> Any:
    tokenizer = make_tokenizer("chatml")
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["vocab"]["not a letter"] = state["model"]["vocab"].pop("Q")
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    return tokenizer


BLANKS = AddedToken("word", rstrip=True)
UNBOUNDED: dict[str, Callable[[], TextTokens]] = {
    "words": lambda: text_of(word_level()),
    "one unknown token for many letters": lambda: text_of(make_sentencepiece("zephyr", "unigram", "always")),
    "a byte without a token": lambda: text_of(missing_byte()),
    "blanks dropped": lambda: byte_level(
        in_words(pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel()]))
    ),
    "a split that removes": lambda: byte_level(
        in_words(pre_tokenizers.Sequence([pre_tokenizers.Split("x", "removed"), pre_tokenizers.ByteLevel()]))
    ),
    "text removed": lambda: byte_level(normalized(normalizers.Replace("a", ""))),
    "accents removed": lambda: byte_level(normalized(normalizers.StripAccents())),
    "blanks at the ends removed": lambda: byte_level(normalized(normalizers.Strip())),
    "a token that takes blanks": lambda: byte_level(lambda tokenizer: tokenizer.add_tokens([BLANKS])),
}


@pytest.mark.parametrize("name", UNBOUNDED)
def test_where_text_may_vanish_nothing_is_said(name: str) -> None:
    assert UNBOUNDED[name]()._bound.fewest("x" * 1_000_000) == 0


@pytest.mark.parametrize("cut", [False, True])
def test_what_is_too_long_is_refused_before_it_is_cut(cut: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = ChatTokens(make_tokenizer("chatml"))
    page = "the capital of Peru is Lima. " * 1000
    tokens = chat.between_turns(page, cut=cut)
    assert chat.between_turns(page, cut=cut, most=len(tokens)) == tokens
    with pytest.raises(TooManyTokens) as raised:
        chat.between_turns(page, cut=cut, most=10)
    fewest = raised.value.fewest - (0 if cut else 1)
    assert len(tokens) / 10 < fewest < len(tokens)
    assert chat.between_turns(page, cut=cut, most=fewest) == tokens

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("text was cut into tokens")

    monkeypatch.setattr(TextTokens, "encode_text", refuse)
    with pytest.raises(TooManyTokens):
        chat.between_turns(page, cut=cut, most=fewest - 1)
    with pytest.raises(TooManyTokens):
        chat.prompt([{"role": "user", "content": page}], most=1000)
    for blanks in (" " * 100_000, "\n" * 100_000 + "x"):
        with pytest.raises(TooManyTokens):
            chat.between_turns(blanks, cut=cut, most=1000)
