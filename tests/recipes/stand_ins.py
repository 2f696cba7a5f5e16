"""Where a rehearsed recipe starts: from its own model where that is shipped, else from a small one of its kind.

shipped in the repository         itself
what another recipe's run leaves  the miniature's policy
a published model                 policies/instruct: it has their kinds of parts and follows the
                                  environment's instructions (see policies/README.md)
"""

from pathlib import Path

from recipe_files import RECIPES, ROOT, read

from megatron_empg.recipe import Recipe, SftRecipe

MINIATURE = ROOT / "recipes/miniature/policy"
INSTRUCT = Path(__file__).parent / "policies/instruct"


def start_of(recipe: Recipe | SftRecipe) -> Path:
    """The model folder that stands for ``model.path``."""
    own = ROOT / recipe.model.path
    if (own / "config.json").exists() and ROOT / "recipes" in own.parents:
        return own
    left_by_runs = {read(path).run.folder / "policy" for path in RECIPES}
    return MINIATURE if recipe.model.path in left_by_runs else INSTRUCT


def is_published(recipe: Recipe | SftRecipe) -> bool:
    """Whether the recipe starts from a model that somebody else made."""
    return start_of(recipe) == INSTRUCT
