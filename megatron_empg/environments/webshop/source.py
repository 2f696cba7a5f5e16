"""WebShop as a plug-in: goals as tasks, and visits to a shop as episodes."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import ClassVar

from megatron_empg.environments.base import EpisodeLimits, Split, Task
from megatron_empg.environments.mapped import Mapped
from megatron_empg.environments.settings import EnvironmentSettings
from megatron_empg.environments.text_worlds.prompt import TextWorldPrompt, show_alone, show_with_choices
from megatron_empg.environments.text_worlds.settings import NO_RULES
from megatron_empg.environments.text_worlds.source import Script, TextWorldSource
from megatron_empg.environments.text_worlds.world import World
from megatron_empg.environments.webshop.catalogue import (
    Catalogue,
    CatalogueFiles,
    GeneratedCatalogue,
    shared_catalogue,
)
from megatron_empg.environments.webshop.goals import GoalSplits
from megatron_empg.environments.webshop.pages import RESULTS_PER_PAGE
from megatron_empg.environments.webshop.served_world import ServedWorld
from megatron_empg.environments.webshop.settings import WebShopSettings
from megatron_empg.environments.webshop.shop import PageOptions
from megatron_empg.environments.webshop.shopper import SHOPPERS, Shopper
from megatron_empg.environments.webshop.titles import SpacyTitles, Titles, WordTitles, require_model
from megatron_empg.environments.webshop.world import LocalWorld, Rewards

RULES = (
    "You are in a web shop and buy what you are asked for. search[words] searches its products. click[name] "
    "clicks something that the page offers: a product by its number, a page of results, an option, or what is "
    "told of a product. Choose the options that you are asked for before you click[buy now], which ends the "
    "visit. What you buy must have the right kind, attributes, options and price."
)
OF_SERVER = "shop"
"""The kind of all goals of a server, of which nothing is known before they are played."""


class WebShop(TextWorldSource):
    """Tasks and episodes; demonstrations too, unless a server has the products."""

    Settings: ClassVar[type[EnvironmentSettings]] = WebShopSettings
    in_threads: ClassVar[bool] = True

    def __init__(self, settings: WebShopSettings, limits: EpisodeLimits) -> None:
        super().__init__(settings, limits)
        self.shop_settings = settings
        self._rewards = Rewards(settings.success_reward, partial=settings.reward == "score")
        self._titles = _titles_of(settings)
        self._lock = threading.Lock()
        self._catalogue: Catalogue | None = None
        self._splits: GoalSplits | None = None
        self._named = _data_of(settings)
        _check_files(settings)

    @classmethod
    def caveats(cls, settings: EnvironmentSettings) -> tuple[str, ...]:
        """What products, goals, search, title scores and pages are not WebShop's, of which a server has its own;
        and what of the prompt is not the papers'."""
        assert isinstance(settings, WebShopSettings)
        if settings.server is not None:
            return tuple(_caveats_of_the_prompt(settings))
        found = list(_caveats_of_products(settings))
        if settings.spacy_model is None:
            found.append("substitute title score: a product's type is judged without spaCy's tagger")
        if settings.results_per_page != RESULTS_PER_PAGE:
            found.append(f"results per page: {settings.results_per_page}, where WebShop shows {RESULTS_PER_PAGE}")
        if settings.show_chosen:
            found.append("chosen options: a product's page says what was chosen, as in WebShop's rich text mode")
        if settings.show_attributes:
            found.append("page of attributes: a product shows more than in WebShop's comparisons")
        return (*found, *_caveats_of_the_prompt(settings))

    @property
    def measured_as(self) -> str:
        """What results are to be called: "WebShop" alone for none that are not WebShop's scores."""
        return self.shop_settings.measured_as

    def catalogue(self) -> Catalogue:
        """Products, goals and search, loaded by whoever asks first: by who lists tasks, so that no episode's time
        passes with it, or else in the first episode's thread. Raises CatalogueError, OSError."""
        with self._lock:
            if self._catalogue is None:
                self._catalogue = shared_catalogue(self._named)
                self._catalogue.build_search()
            return self._catalogue

    def tasks(self, split: Split) -> Sequence[Task]:
        """All goals of a split. Raises CatalogueError, OSError; ValueError where nothing is left to train on."""
        if self.shop_settings.server is not None:
            return Mapped(self._served_goals(split), self._served_task)
        return Mapped(self._goal_numbers(split), self._task)

    def world(self, task: Task) -> World:
        """A visit that has not begun."""
        settings, number = self.shop_settings, int(task.payload["number"])
        if settings.server is not None:
            within = self.limits.step_timeout
            return ServedWorld(settings.server, number, self._rewards, within=within, measured_as=self.measured_as)
        return LocalWorld(
            self.catalogue,
            number,
            self._titles,
            self._rewards,
            measured_as=self.measured_as,
            shown=PageOptions(settings.results_per_page, settings.show_attributes, settings.show_chosen),
        )

    def prompt(self, task: Task) -> TextWorldPrompt:
        """The rules of the shop, unless the policy knows them."""
        settings = self.shop_settings
        if settings.list_commands:
            show = show_with_choices
        else:
            show = show_alone
        if settings.rules == "none":
            return TextWorldPrompt.without_rules(show)
        return TextWorldPrompt(RULES, show)

    @property
    def has_scripts(self) -> bool:
        """Whether the products are known."""
        return self.shop_settings.server is None

    def scripted(self, task: Task, seed: int) -> Script | None:
        """A scripted shopper's visit."""
        if not self.has_scripts:
            return None
        catalogue = self.catalogue()
        settings = self.shop_settings
        chances = SHOPPERS[settings.shopper]
        shopper = Shopper(catalogue, chances, self.limits.max_turns, settings.results_per_page)
        goal = catalogue.goals[int(task.payload["number"])]
        return Script(self.world(task), shopper.turns(goal, seed))

    def metrics(self) -> dict[str, float]:
        """Why results are not WebShop's: 1 where products are made up, title scores those of the substitute, or
        pages other ones."""
        settings = self.shop_settings
        here = settings.server is None
        return {
            "environment/webshop_generated_catalogue": float(here and settings.products is None),
            "environment/webshop_substitute_title_score": float(here and settings.spacy_model is None),
            "environment/webshop_changed_pages": float(settings.changes_pages),
        }

    def _indices_by_kind(self, split: Split, tasks: Sequence[Task]) -> list[list[int]]:
        """As the base has it, without making a task of each of what may be a million goals."""
        if self.shop_settings.server is not None:
            return super()._indices_by_kind(split, tasks)
        if split not in self._by_kind:
            goals = self.catalogue().goals
            found: dict[str, list[int]] = {}
            for index, number in enumerate(self._goal_numbers(split)):
                found.setdefault(goals.category(number), []).append(index)
            self._by_kind[split] = list(found.values())
        return self._by_kind[split]

    def _goal_numbers(self, split: Split) -> Sequence[int]:
        splits = self._goal_splits()
        return {"train": splits.train, "test_id": splits.test, "test_ood": splits.held_out}[split]

    def _goal_splits(self) -> GoalSplits:
        if self._splits is None:
            settings, goals = self.shop_settings, self.catalogue().goals
            held_out = settings.held_out_departments
            self._check_departments(held_out)
            splits = goals.splits(test=settings.test_goals, left_out=settings.dev_goals, held_out=held_out)
            if not len(splits.train):
                raise ValueError(
                    f"webshop: the catalogue has {len(goals)} goals, {len(splits.held_out)} of them held out; "
                    f"test_goals {settings.test_goals} and dev_goals {settings.dev_goals} leave nothing to train "
                    "on. Ask for fewer, or give more products"
                )
            self._splits = splits
        return self._splits

    def _check_departments(self, held_out: frozenset[str]) -> None:
        known = self.catalogue().store.departments
        unknown = sorted(held_out - set(known))
        if unknown:
            raise ValueError(
                f"webshop held_out: the catalogue has no department {unknown[0]!r}; it has {', '.join(known)}"
            )

    def _task(self, number: int) -> Task:
        goal = self.catalogue().goals[number]
        payload = {"goal": goal.text, "number": number, "asin": goal.asin}
        return Task(f"goal {number}", [], payload, kind=goal.category)

    def _served_goals(self, split: Split) -> range:
        settings = self.shop_settings
        first_of_training = settings.test_goals + settings.dev_goals
        return {
            "train": range(first_of_training, settings.server_goals),
            "test_id": range(settings.test_goals),
            "test_ood": range(0),
        }[split]

    def _served_task(self, number: int) -> Task:
        # What is asked stands on every page of the site, and nobody knows it before.
        return Task(f"goal {number}", [], {"goal": "", "number": number}, kind=OF_SERVER)


def _caveats_of_products(settings: WebShopSettings) -> Iterator[str]:
    if settings.products is None:
        yield "generated catalogue: none of WebShop's products is sold"
        return
    yield "search by bm25s: results are ranked a little differently from WebShop's Lucene"
    if settings.first_products is not None:
        yield f"first products alone: {settings.first_products} of the file's are sold"
    if settings.goals == "synthetic" or settings.instructions is None:
        yield "synthetic goals: none was asked for by people"


def _caveats_of_the_prompt(settings: WebShopSettings) -> Iterator[str]:
    if settings.rules == "none":
        yield NO_RULES
    if not settings.list_commands:
        yield "no commands are listed, unlike in the papers' prompts"


def _data_of(settings: WebShopSettings) -> CatalogueFiles | GeneratedCatalogue:
    if settings.products is None:
        return GeneratedCatalogue(settings.generated_products, settings.generated_seed)
    instructions = None
    if settings.goals != "synthetic":
        instructions = settings.instructions
    return CatalogueFiles(settings.products, settings.attributes, instructions, settings.first_products)


def _titles_of(settings: WebShopSettings) -> Titles:
    """Raises SpacyModelError for a model that is not there, before anything is bought."""
    if settings.spacy_model is None:
        return WordTitles()
    require_model(settings.spacy_model)
    return SpacyTitles(settings.spacy_model)


def _check_files(settings: WebShopSettings) -> None:
    """Raises OSError for what cannot be opened, before anything is read."""
    for path in (settings.products, settings.attributes, settings.instructions):
        if path is not None:
            path.open("rb").close()
