"""Deep Search as a plug-in: questions, a place to look them up, a way to call it, and a score of the answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from megatron_empg.environments.base import (
    Demonstrations,
    EpisodeLimits,
    SideService,
    Split,
    Task,
    TaskSource,
    Walkthrough,
)
from megatron_empg.environments.deep_search import search_service
from megatron_empg.environments.deep_search.actions import SearchToolCall, format_action, gold_action
from megatron_empg.environments.deep_search.asked import AskedQuestion, QuestionSet
from megatron_empg.environments.deep_search.corpus import Corpus
from megatron_empg.environments.deep_search.environment import LONGEST_OBSERVATION, DeepSearchEnvironment
from megatron_empg.environments.deep_search.fact_world import FactWorld
from megatron_empg.environments.deep_search.judge import Judge
from megatron_empg.environments.deep_search.prompt import syntax_for
from megatron_empg.environments.deep_search.published_world import (
    PUBLISHED_EXAMPLE,
    PUBLISHED_TOOLS,
    FileQuestions,
    search_tools,
)
from megatron_empg.environments.deep_search.questions import SplitRules
from megatron_empg.environments.deep_search.retrieval import Retriever
from megatron_empg.environments.deep_search.scoring import AnswerScore, GoldAnswerScore, JudgedAnswerScore
from megatron_empg.environments.deep_search.searcher import LAST_THOUGHTS, SEARCHERS
from megatron_empg.environments.deep_search.service_client import TOKEN_VARIABLE
from megatron_empg.environments.deep_search.settings import DeepSearchSettings
from megatron_empg.environments.deep_search.tools import Tools
from megatron_empg.environments.mapped import Mapped
from megatron_empg.environments.settings import EnvironmentSettings

SERVER_OF_INDEX = "megatron_empg.environments.deep_search.search.retrieve_server"


class DeepSearch(TaskSource):
    """Tasks and episodes; walkthroughs too where the questions are made from facts."""

    Settings = DeepSearchSettings

    def __init__(self, settings: DeepSearchSettings, limits: EpisodeLimits) -> None:
        super().__init__(settings, limits)
        self._settings = settings
        self._facts: FactWorld | None = None
        self._questions: QuestionSet
        self._tools: Tools
        prompt = settings.prompt_file or settings.prompt
        if settings.questions is None:
            assert settings.corpus is not None, "the settings have seen to it"
            self._facts = FactWorld(settings.corpus, settings, limits.max_turns)
            self._questions = self._facts.questions
            self._tools = self._facts.tools(settings.search_url, limits.step_timeout)
            self._syntax = syntax_for(prompt)
        else:
            self._questions = FileQuestions(settings.questions)
            self._tools = search_tools(settings, limits.step_timeout)
            self._syntax = syntax_for(prompt, tools=PUBLISHED_TOOLS, example=PUBLISHED_EXAMPLE)
        self._judge = Judge(settings.judge) if settings.judge is not None else None

    @property
    def corpus(self) -> Corpus:
        """The corpus of facts. Raises ValueError where the questions are published ones."""
        return self._world().corpus

    @property
    def retriever(self) -> Retriever:
        """The search over the corpus of facts."""
        return self._world().retriever

    def tasks(self, split: Split) -> Sequence[Task]:
        """All tasks of a split, in a fixed order. Raises ValueError for an unknown split."""
        return Mapped(self._questions.all(split), self._task)

    def sample(self, split: Split, count: int, seed: int) -> list[Task]:
        """Tasks as the question set draws them."""
        return [self._task(asked) for asked in self._questions.sample(split, count, seed)]

    def fixed(self, split: Split, count: int) -> list[Task]:
        """The split's fixed evaluation set. Raises ValueError if the split has too few questions."""
        return [self._task(asked) for asked in self._questions.fixed(split, count)]

    def make(self, task: Task) -> DeepSearchEnvironment:
        """A fresh episode."""
        if self._facts is not None:
            longest = LONGEST_OBSERVATION
        else:
            longest = self._settings.page_characters
        score = self._score(_asked_of(task))
        return DeepSearchEnvironment(self._tools, score, self._syntax, longest_observation=longest)

    @classmethod
    def caveats(cls, settings: EnvironmentSettings) -> tuple[str, ...]:
        """That the questions were made from facts, where they were."""
        assert isinstance(settings, DeepSearchSettings)
        if settings.questions is not None:
            return ()
        return ("questions made from a corpus of facts: none is a published one",)

    def demonstrations(self) -> Demonstrations | None:
        """Itself, where the questions are made from facts."""
        if self._facts is None:
            return None
        return self

    def walkthrough(self, task: Task, seed: int) -> Walkthrough:
        """The scripted searcher's turns on a task. Raises ValueError where the questions are published ones."""
        return Walkthrough(self._world().walkthrough(_asked_of(task), seed, self._syntax))

    def rehearse(self, task: Task) -> list[str]:
        """A search, a visit where it is known what pages there are, and the answer."""
        asked = _asked_of(task)
        if self._facts is not None:
            tried = self._facts.first_look(asked)
        else:
            tried = (SearchToolCall("search", asked.answers[0]),)
        calls = (*tried, SearchToolCall("answer", asked.answers[0]))
        return [format_action("a rehearsal", call, self._syntax) for call in calls]

    def metrics(self) -> dict[str, float]:
        """What the judge was asked, and what it cost."""
        if self._judge is None:
            return {}
        return {f"judge/{name}": value for name, value in self._judge.counts.metrics().items()}

    async def close(self) -> None:
        """Close the connections of the search and of the judge."""
        await self._tools.close()
        if self._judge is not None:
            await self._judge.close()

    @classmethod
    def services(cls, settings: EnvironmentSettings) -> tuple[SideService, ...]:
        """The search as a service, so that what is searched lies in one place; none where settings name one."""
        assert isinstance(settings, DeepSearchSettings)
        if settings.search_url is not None or settings.encoder is not None:
            return ()
        if settings.questions is None:
            arguments = ("-m", search_service.__name__, str(settings.corpus))
        else:
            arguments = ("-m", SERVER_OF_INDEX, str(settings.index))
        return (SideService("search", "search_url", arguments, TOKEN_VARIABLE),)

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Defaults, with the error rates of the `given` searcher. The rules of splits are those before they
        are fitted to a corpus."""
        found = super().defaults(given)
        found["splits"] = asdict(SplitRules())
        searcher = SEARCHERS.get(str(given.get("searcher", found["searcher"])))
        if searcher is not None:  # an unknown one is refused elsewhere
            found["searcher_settings"] = asdict(searcher)
        plain: dict[str, Any] = json.loads(json.dumps(found))
        return plain

    def _world(self) -> FactWorld:
        if self._facts is None:
            raise ValueError(
                "deep_search has published questions here, and so no corpus of facts nor walkthroughs"
            )
        return self._facts

    def _score(self, asked: AskedQuestion) -> AnswerScore:
        settings = self._settings
        if self._judge is not None:
            return JudgedAnswerScore(self._judge, asked.text, asked.answers, settings.normal_form)
        assert settings.reward != "judge", "the settings have seen to it"
        return GoldAnswerScore(asked.answers, settings.reward, settings.normal_form)

    def _task(self, asked: AskedQuestion) -> Task:
        payload = {
            "question": asked.text,
            "answers": list(asked.answers),
            "kind": asked.kind,
            **asked.facts,
        }
        prompt = self._syntax.messages(asked.text, self.limits.max_turns)
        gold = gold_action(LAST_THOUGHTS[0], asked.answers[0], self._syntax)
        tools, role = self._syntax.template_tools, self._syntax.observation_role
        return Task(asked.id, prompt, payload, gold, asked.kind, tools, role, asked.facts.get("hops"))


def _asked_of(task: Task) -> AskedQuestion:
    """The question that a task was made of."""
    known = ("question", "answers", "kind")
    facts = {key: value for key, value in task.payload.items() if key not in known}
    return AskedQuestion(task.id, task.payload["question"], tuple(task.payload["answers"]), task.kind, facts)
