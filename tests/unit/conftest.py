"""What unit tests share."""

import pytest

from megatron_empg.rollout.chat_tokens import ChatTokens
from tests.support.tokenizers_for_tests import make_tokenizer


@pytest.fixture(scope="session")
def chat() -> ChatTokens:
    """A small tokenizer with a template, as an episode uses it."""
    return ChatTokens(make_tokenizer("chatml"))
