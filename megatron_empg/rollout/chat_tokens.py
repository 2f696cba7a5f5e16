"""A chat template as pieces of token ids that are only ever appended.

What the policy sampled stays as it was sampled; the template supplies what stands before, between and around.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from megatron_empg.environments.base import Message

_MARK = "ASSISTANTTURN"


class ChatTokens:
    """`end_of_turn`: the id with which an assistant turn ends (the policy's stop token)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises ValueError for a template that cannot be appended to turn by turn."""
        if not tokenizer.chat_template:
            raise ValueError("the tokenizer has no chat template: add chat_template.jinja to its folder")
        self._tokenizer = tokenizer
        self._specials = [text for text in tokenizer.get_added_vocab() if text]
        self.end_of_turn = self._after_turn("observation")[0]
        if self.end_of_turn not in tokenizer.get_added_vocab().values():
            shown = tokenizer.convert_ids_to_tokens(self.end_of_turn)
            raise ValueError(f"the chat template ends a turn with {shown!r}, which is not a special token")
        self._check_template()

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ChatTokens:
        """From a folder with tokenizer.json and a chat template."""
        from transformers import AutoTokenizer

        return cls(AutoTokenizer.from_pretrained(str(folder)))

    def prompt(self, messages: list[Message]) -> list[int]:
        """Ids of a conversation, up to where the assistant begins to speak."""
        return self._encode(self._render(messages))

    def between_turns(self, observation: str, *, cut: bool) -> list[int]:
        """Ids from the end of one assistant turn to the start of the next.

        `cut`: the turn did not end itself, so its end token comes first; else the policy has sampled it.
        """
        after = self._after_turn(self.clean(observation))
        return after if cut else after[1:]

    def text(self, token_ids: list[int]) -> str:
        """What the ids of a turn say, without special tokens."""
        text = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def clean(self, observation: str) -> str:
        """Without the text of special tokens: an observation must not be able to end its own message."""
        for special in self._specials:
            observation = observation.replace(special, "")
        return observation

    def drift(self, token_ids: list[int], messages: list[Message]) -> int:
        """Tokens from the first one on that differs from the template's own rendering of the conversation.

        0 when all agree. `messages` end before an assistant turn, or with one that `token_ids` end with too.
        A policy that spells a word in pieces the tokenizer would have joined drifts; the ids stay its own.
        """
        rendered = self._encode(self._render(messages))
        for index, (own, other) in enumerate(zip(token_ids, rendered, strict=False)):
            if own != other:
                return len(token_ids) - index
        return max(0, len(token_ids) - len(rendered))

    def _render(self, messages: list[Message]) -> str:
        begins = messages[-1]["role"] != "assistant"
        conversation = [{"role": m["role"], "content": m["content"]} for m in messages]
        text = self._tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=begins)
        assert isinstance(text, str)
        return text

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _after_turn(self, observation: str) -> list[int]:
        conversation: list[Message] = [
            {"role": "user", "content": "question"},
            {"role": "assistant", "content": _MARK},
            {"role": "user", "content": observation},
        ]
        return self._encode(self._render(conversation).rpartition(_MARK)[2])

    def _check_template(self) -> None:
        """Appending pieces must give what the template gives for the whole."""
        messages: list[Message] = [{"role": "user", "content": "question"}]
        token_ids = self.prompt(messages)
        for number in ("first", "second"):
            token_ids += self._encode(number) + self.between_turns("seen " + number, cut=True)
            messages += [
                {"role": "assistant", "content": number},
                {"role": "user", "content": "seen " + number},
            ]
        if self.drift(token_ids, messages):
            raise ValueError(
                "the chat template renders earlier turns differently once later ones follow, so a conversation "
                "cannot grow by appending. Use a template that renders every message by itself."
            )
