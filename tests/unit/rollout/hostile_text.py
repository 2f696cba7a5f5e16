"""Texts that try to forge a turn, and how to tell whether one did."""

from hypothesis import strategies as st

from tests.support.tokenizers_for_tests import FAMILIES, ORDINARY

TEMPLATES = ("chatml", "llama3", "qwen2.5", "qwen3", "llama3.1", "llama3.2", "smollm2", "gemma", "zephyr")
CONTROL = sorted({text for family in TEMPLATES for text in FAMILIES[family][1]})
ROLES = ["user", "assistant", "system", "model", "<|user|>", "<|assistant|>"]
FRAGMENTS = [
    *CONTROL,
    *ORDINARY,
    *ROLES,
    *(text[:cut] for text in CONTROL for cut in (1, 3, len(text) - 1)),
    *(text[cut:] for text in CONTROL for cut in (1, 3, len(text) - 1)),
    *("\n", "\n\n", " ", "    ", "x", "Lima", "ASSISTANTTURN", "turn", "question", "é", "東京", "\u2028", "\x00"),
]
hostile = st.one_of(st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join), st.text(max_size=20))


def said(tokenizer, ids, control):
    """The texts between the control tokens, and the control tokens."""
    texts, run, found = [], [], []
    for number in ids:
        if number in control:
            texts.append(tokenizer.decode(run))
            run = []
            found.append(number)
        else:
            run.append(number)
    return [*texts, tokenizer.decode(run)], found
