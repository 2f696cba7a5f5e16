"""What groups of recipe keys are made of: the base of every section, and the ranges that its numbers may have."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# Seeds of draws are a million times the run's and more, and must fit 64 bits; no count needs more either.
LARGEST = 2**31 - 1
Positive = Annotated[int, Field(ge=1, le=LARGEST)]
NonNegative = Annotated[int, Field(ge=0, le=LARGEST)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Coefficient = Annotated[float, Field(ge=-100, le=100)]
NonNegativeCoefficient = Annotated[float, Field(ge=0, le=100)]
Share = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A group of keys. Unknown keys are errors, values are never silently converted between kinds.

    Numbers are finite.
    """

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False)
