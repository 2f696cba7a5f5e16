"""`empg environments`: a line for each, its settings, and the check with its status."""

import pytest
import typer
from typer.testing import CliRunner

from megatron_empg.cli.environments import environments
from megatron_empg.environments.conformance import RULES
from megatron_empg.recipe import RecipeError

CASES = "tests.unit.environments.conformance_cases"
SOUND = f"{CASES}:Sound"
APP = typer.Typer()
APP.command()(environments)


def said(*words):
    """(status, output) of the command."""
    done = CliRunner().invoke(APP, list(words), env={"COLUMNS": "200"}, catch_exceptions=False)
    return done.exit_code, done.output


def test_what_is_installed_has_a_line_each(tmp_path, monkeypatch):
    info = tmp_path / "mine-2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 2.1\n", encoding="utf-8")
    points = f"corridor = {CASES}:InProcesses\nlost = no_such_module:Class\ndoors = {CASES}:Serving"
    (info / "entry_points.txt").write_text(f"[megatron_empg.environments]\n{points}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    status, output = said()
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in output.splitlines()}
    assert status == 0
    assert lines["name"] == "from episodes run services demonstrations"
    assert lines["deep_search"] == "built in on the event loop search yes"
    assert lines["corridor"] == "mine 2.1 in worker processes none yes"
    assert lines["doors"] == "mine 2.1 on the event loop doors yes"
    assert "cannot be imported: No module named 'no_such_module'" in lines["lost"]


def test_settings_are_shown_with_type_default_and_meaning():
    status, output = said(SOUND)
    assert status == 0
    assert f"{SOUND}: Doors." in output
    assert "  doors: whole number; default 3\n      How many doors stand before the exit." in output
    assert "  service_url: address of a service or null; default null" in output


def test_an_environment_may_be_called_check(monkeypatch):
    from megatron_empg.environments import registry

    monkeypatch.setattr(registry, "BUILT_IN", registry.BUILT_IN | {"check": SOUND})
    status, output = said("check")
    assert (status, output.startswith("check: Doors.")) == (0, True)


def test_every_setting_of_a_built_in_environment_is_shown():
    from megatron_empg.environments.deep_search.settings import DeepSearchSettings

    _, output = said("deep_search")
    assert [key for key in DeepSearchSettings.model_fields if f"  {key}: " not in output] == []


def test_the_check_has_a_line_for_each_rule_and_status_0_where_none_is_broken():
    status, output = said("check", SOUND, "doors=2")
    lines = output.splitlines()
    assert [line.partition(": ")[0] for line in lines[:-1]] == [rule.sentence for rule in RULES]
    assert lines[-1].startswith(f"{len(RULES)} rules: 0 broken")
    assert status == 0


def test_a_broken_rule_is_shown_with_what_was_met_and_status_1():
    status, output = said("check", f"{CASES}:Unrehearsed")
    assert status == 1
    assert "rehearsed turns can be read: BROKEN, the rehearsed turn 'mumble' of task 'train" in output
    assert "rules: 1 broken" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nobody"], "environment name 'nobody' is unknown; allowed: alfworld, deep_search"),
        (["check", "nobody"], "environment name 'nobody' is unknown"),
        (
            ["check", SOUND, "doors=many"],
            "doors is 'many': Input should be a valid integer",
        ),
        (
            ["check", SOUND, "windows=2"],
            "windows: there is no such setting",
        ),
        (["check", SOUND, "doors"], "'doors' is not of the form"),
        (["check", SOUND, "doors=[1"], "is not YAML"),
    ],
)
def test_what_cannot_be_is_refused_by_a_message(words, message):
    with pytest.raises(RecipeError) as refused:
        said(*words)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check"], "check what?"),
        (["deep_search", "prompt=none"], "empg environments check deep_search"),
        (["check", "deep_search", "--call-timeout", "0"], "above 0"),
    ],
)
def test_a_command_that_is_not_one_is_refused(words, message):
    status, output = said(*words)
    assert status == 2
    assert message in " ".join(output.replace("│", " ").split())
