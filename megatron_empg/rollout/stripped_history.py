"""What a policy reads of earlier turns where their thoughts are left out, put together from recorded tokens."""

from __future__ import annotations

from megatron_empg.rollout.chat_tokens import ChatTokens
from megatron_empg.rollout.chat_use import ChatUse


class StrippedHistory:
    """A conversation as its next turns read it; `tokens` end where the last turn that was taken begins."""

    def __init__(self, chat: ChatTokens, use: ChatUse, prompt: list[int]) -> None:
        """`prompt`: what the first turn reads."""
        self._chat, self._use = chat, use
        self.tokens = chat.as_history(prompt, use)

    def with_turn(self, turn: list[int]) -> list[int]:
        """The tokens, and a turn's without those of its thought."""
        return self.tokens + self._chat.without_thought(turn, self._use)

    def take(self, read: list[int], between: list[int]) -> list[int]:
        """Go on to the next turn and return what it reads. `read`: of `with_turn`; `between`: what came after."""
        self.tokens = read + self._chat.as_history(between, self._use)
        return read + between
