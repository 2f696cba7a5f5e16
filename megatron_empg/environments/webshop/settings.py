"""What `environment.settings` may say of WebShop."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from megatron_empg.environments.settings import DataFile, ServiceAddress
from megatron_empg.environments.text_worlds.settings import RulesTold, TextWorldSettings
from megatron_empg.environments.webshop.pages import RESULTS_PER_PAGE

HELD_OUT_OF_GENERATED = ("garden",)
"""The department of the generated catalogue that nothing is trained on, unless the settings say otherwise."""
_OF_PRODUCTS = ("attributes", "instructions", "goals", "first_products")
_OF_FILES = ("products", *_OF_PRODUCTS, "spacy_model", "held_out")
_OF_PAGES = ("results_per_page", "show_attributes", "show_chosen")
_GOALS_OF = {"human": "instructions", "synthetic": "attributes"}


class WebShopSettings(TextWorldSettings):
    """Products come from WebShop's own files where `products` are given, else from the generated catalogue; or a
    running WebShop `server` has its own."""

    products: DataFile | None = None
    """WebShop's products: items_shuffle.json or items_shuffle_1000.json, or a file like them."""
    attributes: DataFile | None = None
    """Their attributes, and the words of synthetic goals: items_ins_v2.json or items_ins_v2_1000.json."""
    instructions: DataFile | None = None
    """What people asked for: items_human_ins.json."""
    goals: Literal["human", "synthetic"] | None = None
    """Where goals come from: "human" the instructions, "synthetic" the attributes, with every combination of a
    product's options. Unless given the instructions where there are any."""
    first_products: Annotated[int, Field(ge=1)] | None = None
    """Records of `products` that are read; all unless given."""
    generated_products: Annotated[int, Field(ge=150)] = 1000
    """Products of the generated catalogue."""
    generated_seed: int = 0
    """What they follow from."""
    test_goals: Annotated[int, Field(ge=1)] = 500
    """Of the shuffled goals the first ones, which are the split test_id."""
    dev_goals: Annotated[int, Field(ge=0)] = 1000
    """Goals behind these that are in no split, as in WebShop; verl-agent trains on them: 0."""
    held_out: list[str] | None = None
    """Departments, such as "garden", whose goals are the split test_ood and in no other. Unless given none of
    files, and "garden" of the generated catalogue."""
    spacy_model: str | None = None
    """The spaCy model that title scores are taken with: en_core_web_sm or en_core_web_lg, or a path. Without it
    they are those of a substitute, and results are no WebShop scores."""
    reward: Literal["success", "score"] = "success"
    """What a purchase earns: "success" the `success_reward` for a score of 1 and nothing else, "score" the score's
    share of it."""
    show_attributes: bool = False
    """Whether a product has a page of its attributes, too; not in WebShop's comparisons."""
    results_per_page: Annotated[int, Field(ge=1, le=50)] = RESULTS_PER_PAGE
    """Products on a page of results; WebShop shows ten."""
    show_chosen: bool = False
    """Whether a product's page begins with what was chosen on it, as WebShop's rich text mode does ("You have
    clicked black."); its plain one, which the comparisons take, does not show it."""
    list_commands: bool = True
    """Whether a prompt lists the commands that are possible, behind the page that offers them."""
    rules: RulesTold = "full"
    """What the policy is told beside the task and the page: "full" what can be done and how a turn is written,
    "none" is for a policy that was warmed up without."""
    shopper: Literal["fallible", "flawless"] = "fallible"
    """Who plays demonstrations: one who now and then searches vaguely or forgets an option, or one who never
    does."""
    server: ServiceAddress | None = None
    """A running WebShop site, whose products, goals and scores are then taken. Its token, if it asks for one, is
    the value of the variable EMPG_WEBSHOP_TOKEN."""
    server_goals: Annotated[int, Field(ge=2)] = 12_087
    """Goals that the site has: so many with all of WebShop's products and instructions, fewer with fewer."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.server is not None:
            given = [name for name in _OF_FILES if getattr(self, name) is not None]
            given += self._changed_of_pages()
            if given:
                raise ValueError(f"{', '.join(given)}: a server has its own; leave them out, or leave out server")
            self._leaves_some(self.server_goals)
        elif self.products is None:
            given = [name for name in _OF_PRODUCTS if getattr(self, name) is not None]
            if given:
                raise ValueError(f"{', '.join(given)}: they go with products, which are not given")
        elif self.attributes is None and self.instructions is None:
            raise ValueError("products are given without attributes or instructions, so that there are no goals")
        elif self.goals is not None and getattr(self, _GOALS_OF[self.goals]) is None:
            raise ValueError(f"goals {self.goals}: they are made of {_GOALS_OF[self.goals]}, which are not given")
        return self

    def _changed_of_pages(self) -> list[str]:
        fields = type(self).model_fields
        return [name for name in _OF_PAGES if getattr(self, name) != fields[name].default]

    def _leaves_some(self, goals: int) -> None:
        if self.test_goals + self.dev_goals >= goals:
            raise ValueError(
                f"test_goals {self.test_goals} and dev_goals {self.dev_goals} leave nothing of {goals} goals to "
                "train on; ask for fewer"
            )

    @property
    def held_out_departments(self) -> frozenset[str]:
        """Departments that nothing is trained on."""
        if self.held_out is not None:
            return frozenset(self.held_out)
        if self.products is not None:
            return frozenset()
        return frozenset(HELD_OUT_OF_GENERATED)

    @property
    def changes_pages(self) -> bool:
        """Whether pages show other things than WebShop's."""
        return bool(self._changed_of_pages())

    @property
    def measured_as(self) -> str:
        """What results under these settings are to be called."""
        if self.server is not None:
            return "WebShop, a running server"
        others = []
        if self.products is None:
            others.append("generated catalogue")
        if self.spacy_model is None:
            others.append("substitute title score")
        if self.changes_pages:
            others.append("changed pages")
        if not others:
            return "WebShop, search by bm25s"
        return ", ".join(["WebShop engine", *others])
