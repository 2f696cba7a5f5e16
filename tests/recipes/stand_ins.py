"""Where a rehearsed recipe starts: from its own model where that is shipped, else from a small one of its kind.

shipped in the repository         itself
what another recipe's run leaves  the miniature's policy
a published model                 policies/instruct, or instruct_tools where the recipe says `prompt: tools`: they
                                  have such models' kinds of parts and follow the environment's
                                  instructions (see policies/README.md)
the same, in a world of commands  policies/worlds, which was taught how a turn is written there

A recipe that starts from instruct_tools is rehearsed on prepared data, as a job of slurm/ trains on it: there this
policy was taught.
"""

from pathlib import Path

from megatron_empg.recipe import Recipe, SftRecipe
from tests.recipes.prepared_miniature import data_words
from tests.recipes.recipe_files import RECIPES, ROOT, WORLDS, read

MINIATURE = ROOT / "recipes/miniature/policy"
INSTRUCT = Path(__file__).parent / "policies/instruct"
INSTRUCT_TOOLS = INSTRUCT.with_name("instruct_tools")
OF_WORLDS = INSTRUCT.with_name("worlds")


def start_of(recipe: Recipe | SftRecipe) -> Path:
    """The model folder that stands for ``model.path``."""
    own = ROOT / recipe.model.path
    if (own / "config.json").exists() and ROOT / "recipes" in own.parents:
        return own
    if recipe.environment.name in WORLDS:
        return OF_WORLDS
    left_by_runs = {read(path).run.folder / "policy" for path in RECIPES}
    if recipe.model.path in left_by_runs:
        return MINIATURE
    return INSTRUCT_TOOLS if recipe.environment.settings.get("prompt") == "tools" else INSTRUCT


def is_published(recipe: Recipe | SftRecipe) -> bool:
    """Whether the recipe starts from a model that somebody else made."""
    return start_of(recipe) in (INSTRUCT, INSTRUCT_TOOLS, OF_WORLDS)


def data_of(recipe: Recipe | SftRecipe, prepared: Path) -> list[str]:
    """Overrides that name what a recipe is rehearsed on, of the folder that a job would be given."""
    on_prepared = isinstance(recipe, Recipe) and start_of(recipe) == INSTRUCT_TOOLS
    return data_words(recipe, prepared) if on_prepared else []
