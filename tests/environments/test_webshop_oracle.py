"""Our ratio of two texts beside that of thefuzz 0.19.0 itself, the version that WebShop pins."""

import random
import warnings
from importlib import metadata
from importlib.util import find_spec

from megatron_empg.environments.webshop.generated import vocabulary
from megatron_empg.environments.webshop.token_ratio import token_set_ratio
from tests.environments.needed import needs

PUBLISHED = "0.19.0"
LETTERS = "abc déß İ東_-/'\"12,.()’\u00a0"


def short_texts():
    kinds = vocabulary().kinds
    attributes = {attribute for kind in kinds for attribute in kind.attributes}
    values = {value for kind in kinds for listed in kind.options.values() for value in listed}
    return sorted(attributes | values)


def test_our_ratio_is_that_of_the_thefuzz_that_webshop_pins():
    here = find_spec("thefuzz") is not None and metadata.version("thefuzz") == PUBLISHED
    needs(here, f"thefuzz {PUBLISHED}", "pip install -r requirements-environments.txt")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # it says that Levenshtein is not there, with which it would count otherwise
        from thefuzz import fuzz
    needs(fuzz.SequenceMatcher.__module__ == "difflib", "thefuzz without Levenshtein", "pip uninstall Levenshtein")
    rng, texts = random.Random(0), short_texts()
    pairs = [(rng.choice(texts), rng.choice(texts)) for _ in range(3000)]
    for _ in range(2000):
        pairs.append(tuple("".join(rng.choices(LETTERS, k=rng.randint(0, 30))) for _ in range(2)))
    for _ in range(20):
        pairs.append(tuple(" ".join(rng.choices(texts, k=60)) for _ in range(2)))
    different = [pair for pair in pairs if fuzz.token_set_ratio(*pair) != token_set_ratio(*pair)]
    assert different == []
