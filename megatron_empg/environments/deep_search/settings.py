"""What `environment.settings` may say of Deep Search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from megatron_empg.environments.deep_search.answers import NormalForm, RewardMode
from megatron_empg.environments.deep_search.data.question_files import QuestionFiles
from megatron_empg.environments.deep_search.judge import JudgeSettings
from megatron_empg.environments.deep_search.prompt import PromptStyle
from megatron_empg.environments.deep_search.search.encoder import EncoderSettings
from megatron_empg.environments.deep_search.search.result_limits import (
    LEAST_CHARACTERS,
    MOST_RESULTS,
    PAGE_CHARACTERS,
    ResultLimits,
)
from megatron_empg.environments.settings import (
    DataFile,
    DataFolder,
    EnvironmentSettings,
    ServiceAddress,
)

DEFAULT_CORPUS = "recipes/miniature/corpus.jsonl"
OF_FACTS = ("corpus", "searcher", "searcher_settings", "splits")
"""Keys that go with questions made from facts."""
OF_FILES = ("index", "encoder", "results", "snippet_characters", "page_characters")
"""Keys that go with published questions."""


def _encoder_of(given: Any) -> Any:
    """A bare path is the path of an encoder."""
    if isinstance(given, str | Path):
        return {"path": given}
    return given


class DeepSearchSettings(EnvironmentSettings):
    """Settings of Deep Search: a corpus of facts, from which the questions are made too, or published `questions`
    and an `index` of real documents."""

    corpus: DataFile | None = None
    """Pages of facts, as docs/deep_search.md describes them; the miniature's unless `questions` are given."""
    questions: QuestionFiles | None = None
    """Files of published questions for each split; see docs/deep_search.md."""
    index: DataFolder | None = None
    """An index of documents that `empg index` has made, to search with published questions."""
    encoder: Annotated[EncoderSettings, BeforeValidator(_encoder_of)] | None = None
    """A sentence encoder, or its folder alone: the search goes by its vectors, which lie in the index, instead of
    by words."""
    search_url: ServiceAddress | None = None
    """Where episodes look things up instead of in this process: with a corpus of facts a service of
    `search_service`, with published questions any server of the /retrieve protocol."""
    results: Annotated[int, Field(ge=1, le=MOST_RESULTS)] = ResultLimits.top_k
    """Documents that a search shows, of real ones."""
    snippet_characters: Annotated[int, Field(ge=LEAST_CHARACTERS)] = ResultLimits.snippet_characters
    """Characters of each of them."""
    page_characters: Annotated[int, Field(ge=LEAST_CHARACTERS)] = PAGE_CHARACTERS
    """Characters of a whole observation."""
    prompt: PromptStyle = "tags"
    """What the policy is told: "tags" and "tools" say in a system message how to act, within the turns it has, and
    remind it after a malformed turn, the one by tags, the other by the chat template's own tool calls
    ("tools_llama3" for templates of Llama 3's kind); "none" is for a policy that was warmed up on the bare
    questions."""
    prompt_file: DataFile | None = None
    """A prompt of your own, which says itself in which syntax calls are written; see docs/deep_search.md."""
    reward: RewardMode = "exact"
    """What an answer earns: 1 for an exact match, its F1, or 1 where the judge calls it right."""
    normal_form: NormalForm = "project"
    """How answers are compared: by the project's form, made for any script, or as the official scripts do."""
    judge: JudgeSettings | None = None
    """The model that judges answers, for `reward` "judge"."""
    searcher: Literal["fallible", "habit", "flawless"] = "fallible"
    """Whose walkthroughs warm a policy up: one that errs at random, one with a systematic wrong habit, or none."""
    searcher_settings: dict[str, Any] = Field(default_factory=dict)
    """Other chances of erring than the searcher's own."""
    splits: dict[str, Any] = Field(default_factory=dict)
    """Other rules for what is held out of questions made from facts; `SplitRules` has them."""

    @model_validator(mode="before")
    @classmethod
    def _default_corpus(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("questions") is None and given.get("corpus") is None:
            return {**given, "corpus": DEFAULT_CORPUS}
        return given

    @model_validator(mode="after")
    def _one_world(self) -> Self:
        strange: tuple[str, ...] = OF_FILES
        if self.questions is not None:
            strange = OF_FACTS
        for key in strange:
            if key in self.model_fields_set and getattr(self, key) is not None:
                other = "published questions"
                if self.questions:
                    other = "questions made from a corpus of facts"
                raise ValueError(f"{key} goes with {other}; leave it out, or {_other_way(self)}")
        if self.questions is not None and self.index is None and self.search_url is None:
            raise ValueError(
                "questions are given without anything to search: give an index (`empg index CORPUS FOLDER` makes "
                "one) or a search_url"
            )
        if self.encoder is not None and self.search_url is not None:
            raise ValueError(
                "encoder and search_url are both given, but the server at search_url searches in its own way; "
                "leave one out"
            )
        if self.encoder is not None and self.index is None:
            raise ValueError("encoder is given without an index, in which its vectors lie; give index")
        return self

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if self.prompt_file is not None and "prompt" in self.model_fields_set:
            raise ValueError("prompt and prompt_file are both given; leave one out")
        return self

    @model_validator(mode="after")
    def _judged(self) -> Self:
        if (self.reward == "judge") != (self.judge is not None):
            raise ValueError(
                f"reward is {self.reward!r} {'without' if self.judge is None else 'with'} a judge; "
                'give `judge` (url and model) exactly when reward is "judge"'
            )
        return self


def _other_way(settings: DeepSearchSettings) -> str:
    if settings.questions is None:
        return "give questions"
    return "leave questions out"
