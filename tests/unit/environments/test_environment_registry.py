"""How environments are found by name, and what is said of names that lead nowhere."""

import sys

import pytest

from megatron_empg.environments.deep_search.source import DeepSearch
from megatron_empg.environments.registry import (
    BUILT_IN,
    caveats,
    data_files,
    default_settings,
    installed,
    is_known,
    make_task_source,
    origins,
    place_settings,
    plugin,
    unknown,
)

CASES = "tests.unit.environments.conformance_cases"
SOUND = f"{CASES}:Sound"


def offer(folder, monkeypatch, **points):
    """Install a package with these entry points."""
    info = folder / "mine-2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 2.1\n", encoding="utf-8")
    named = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[megatron_empg.environments]\n{named}", encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))


def test_a_name_that_nobody_has_is_refused_with_those_that_are():
    assert not is_known("deep_serch")
    with pytest.raises(
        ValueError, match=r"'deep_serch' is unknown; allowed: alfworld, .*, webshop, or module:Class"
    ):
        plugin("deep_serch")
    assert "deep_search" in unknown("x")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:Class", "No module named 'no_such_module'; install its package, .*: PYTHONPATH=FOLDER"),
        (f"{CASES}:NoSuch", "cannot be imported: .*has no attribute 'NoSuch'"),
        (f"{CASES}:", "cannot be imported"),
        (":Sound", "cannot be imported"),
        ("..:Sound", "cannot be imported"),
        (
            f"{CASES}:Corridor",
            r"is not a subclass of megatron_empg\.environments\.TaskSource",
        ),
        (f"{CASES}:KINDS", "is not a subclass"),
        (f"{CASES}:NoSettings", "its Settings do not derive from EnvironmentSettings"),
        ("os:getcwd", "is not a subclass"),
    ],
)
def test_what_a_name_leads_to_must_be_a_task_source(name, message):
    with pytest.raises(ValueError, match=message) as refused:
        plugin(name)
    assert repr(name) in str(refused.value)


def test_a_class_of_a_module_and_one_within_another_are_found():
    assert plugin(SOUND).__name__ == "Sound"
    assert is_known(SOUND)
    assert make_task_source(SOUND, max_turns=3, doors=4).limits.max_turns == 3


def test_a_module_that_fails_to_import_says_so(tmp_path, monkeypatch):
    (tmp_path / "broken_plugin.py").write_text("raise RuntimeError('the engine is not licensed')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=r"'broken_plugin:Any'.* cannot be imported: .*not licensed"):
        plugin("broken_plugin:Any")
    sys.modules.pop("broken_plugin", None)


def test_an_entry_point_gives_a_name_and_cannot_take_one(tmp_path, monkeypatch):
    offer(
        tmp_path,
        monkeypatch,
        corridor=f"{SOUND} [fast]",
        deep_search=SOUND,
    )
    assert installed()["corridor"] == SOUND
    assert plugin("corridor").__name__ == "Sound"
    assert installed()["deep_search"] == BUILT_IN["deep_search"]
    assert plugin("deep_search") is DeepSearch
    assert origins() == {"corridor": "mine 2.1"} | dict.fromkeys(BUILT_IN, "built in")


def test_defaults_places_and_data_of_any_environment_are_known(tmp_path):
    assert default_settings(SOUND, {}) == {"doors": 3}
    assert place_settings(SOUND) == {"service_url"}
    assert data_files(SOUND, {}) == {}
    corpus = tmp_path / "corpus.jsonl"
    assert data_files("deep_search", {"corpus": str(corpus)}) == {"corpus": corpus}


def test_what_is_unknown_has_no_defaults_places_or_data():
    for name in ("nobody", "no_such_module:Class"):
        assert default_settings(name, {}) == {}
        assert place_settings(name) == set()
        assert data_files(name, {}) == {}
    assert data_files(SOUND, {"doors": "many"}) == {}


def test_settings_are_checked_under_the_environments_name():
    with pytest.raises(
        ValueError,
        match=rf"{SOUND} doors is 'many': Input should be a valid int",
    ):
        make_task_source(SOUND, doors="many")
    with pytest.raises(
        ValueError,
        match=rf"{SOUND} windows: there is no such setting; allowed: doors",
    ):
        make_task_source(SOUND, windows=2)


def names_of(environment, settings):
    """What stands before the colon of each caveat."""
    return [caveat.partition(":")[0] for caveat in caveats(environment, settings)]


def test_built_in_environments_say_what_cannot_be_compared(tmp_path):
    assert caveats("deep_search", {}) == ["questions made from a corpus of facts: none is a published one"]
    assert names_of("webshop", {}) == ["generated catalogue", "substitute title score"]
    assert caveats("webshop", {"server": "http://shop"}) == []
    files = {"products": "p.json", "attributes": "a.json", "instructions": "i.json", "spacy_model": "some"}
    assert names_of("webshop", files) == ["search by bm25s"]
    changed = {"goals": "synthetic", "first_products": 1000, "show_attributes": True}
    assert names_of("webshop", files | changed) == [
        "search by bm25s",
        "first products alone",
        "synthetic goals",
        "page of attributes",
    ]
    assert caveats("scienceworld", {"splits": "epo", "drawn": "variations"}) == []
    assert names_of("scienceworld", {}) == ["other variations than EPO's", "drawn differently from EPO"]
    changed = {
        "simplifications": "",
        "choices": "none",
        "reward": "score",
        "rules": "none",
        "tasks": ["boil"],
        "drawn": "variations",
    }
    assert names_of("scienceworld", {"splits": "epo", "drawn": "variations", **changed}) == [
        "fewer tasks than EPO's",
        "other simplifications than EPO's",
        "other choices than EPO's",
        "no rules are told, unlike EPO's",
        "another reward than EPO's",
    ]
    assert len(caveats("sokoban", {})) == 1
    assert caveats("sokoban", {"rules": "none"})[1:] == ["no rules are told, unlike the papers'"]
    assert caveats("alfworld", {"data": str(tmp_path)}) == [], "it is refused elsewhere"
    assert caveats("nobody", {}) == []
