"""The shape of the model that a plan is for: read from its folder, or known before it is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_empg.recipe import RecipeError
from megatron_empg.weights.mapping.known_models import known_model
from megatron_empg.weights.mapping.model_config import ModelConfig, ModelConfigError


@dataclass(frozen=True)
class ModelShape:
    """A model's configuration and where it is from. `note`: what a reader must know of that; empty for a file."""

    config: ModelConfig
    origin: str
    note: str = ""


def shape_of(folder: Path) -> ModelShape:
    """The shape of the model in `folder`, or of the published model of that name where there is no such folder.

    Raises RecipeError for a folder whose config.json cannot be used, and for a model that is neither.
    """
    known = known_model(folder)
    if known is not None and not folder.exists():
        note = (
            f"{folder} is not there: this plan is by the published shape of {known.hub_id}, which megatron_empg "
            f"carries ({known.weight_bytes / 1e9:.0f} GB of weights to fetch before a run)."
        )
        return ModelShape(ModelConfig.from_dict(dict(known.shape)), known.hub_id, note)
    try:
        config = ModelConfig.from_folder(folder)
    except ModelConfigError as error:
        raise RecipeError(f"model.path: {error}") from None
    return ModelShape(config, str(folder / "config.json"))
