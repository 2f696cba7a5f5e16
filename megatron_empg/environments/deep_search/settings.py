"""What `environment.settings` may say of Deep Search."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from megatron_empg.environments.deep_search.prompt import PromptStyle
from megatron_empg.environments.settings import DataFile, EnvironmentSettings, ServiceAddress

DEFAULT_CORPUS = "recipes/miniature/corpus.jsonl"


class DeepSearchSettings(EnvironmentSettings):
    """Over a corpus of facts, from which the questions are made."""

    corpus: DataFile = Path(DEFAULT_CORPUS)
    """The pages, as docs/deep_search.md describes them."""
    prompt: PromptStyle = "tags"
    """"tags" tells the policy in a system message how to act, within the turns it has, and reminds it after a
    malformed turn; "none" is for a policy that was warmed up on the bare questions."""
    search_url: ServiceAddress | None = None
    """Where episodes look things up; in the corpus itself unless given (see `search_service`)."""
    searcher: Literal["fallible", "habit", "flawless"] = "fallible"
    """Whose walkthroughs warm a policy up: one that errs at random, one with a systematic wrong habit, or none."""
    searcher_settings: dict[str, Any] = Field(default_factory=dict)
    """Other chances of erring than the searcher's own."""
    splits: dict[str, Any] = Field(default_factory=dict)
    """Other rules for what is held out; `SplitRules` has them."""
