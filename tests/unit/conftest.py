"""What unit tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from megatron_empg.rollout.chat_tokens import ChatTokens


@pytest.fixture(scope="session")
def chat() -> ChatTokens:
    """A small tokenizer with a template, as an episode uses it. Few tests need one, so it is imported here."""
    from megatron_empg.rollout.chat_tokens import ChatTokens
    from tests.support.tokenizers_for_tests import make_tokenizer

    return ChatTokens(make_tokenizer("chatml"))
