"""`empg plan --simulate`."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from megatron_empg.cli import app
from megatron_empg.planner.simulation.engine import EngineRates
from megatron_empg.planner.simulation.files import rates_as_json
from megatron_empg.recipe import RecipeError

ROOT = Path(__file__).parents[4]
SMALL = ("rollout.groups=2", "rollout.group_size=2", "rollout.max_lag=0")
LAGGED = "limits.sync_timeout=300"
"""A recipe whose episodes play on while weights are sent must send them within a request's time."""


def command(*arguments: str, recipe: str = "deepsearch_32b") -> Any:
    return CliRunner().invoke(app, ["plan", str(ROOT / f"recipes/{recipe}.yaml"), *SMALL, *arguments])


def lags(*arguments: str) -> list[int]:
    return [lag["max_lag"] for lag in json.loads(command("--simulate", "--json", *arguments).output)["lags"]]


def test_the_lag_is_the_recipes_unless_another_is_given() -> None:
    assert lags() == [0]
    assert lags("rollout.max_lag=1") == [0, 1], "as it is shipped"
    assert lags("rollout.max_lag=2", LAGGED) == [0, 1, 2]
    assert lags("rollout.max_lag=2", LAGGED, "--max-lag", "1") == [0, 1]
    assert lags("rollout.max_lag=2", LAGGED, "--max-lag", "0") == [0]


def test_lags_are_rows_and_the_recipes_lag_is_said() -> None:
    result = command("--simulate", "--max-lag", "3", "rollout.max_lag=1", LAGGED)
    assert result.exit_code == 0, result.output
    plain = " ".join(result.output.split())
    assert "rollout.max_lag of the recipe is 1." in plain
    assert "lengths, latencies and the trainer's speed by the planner's assumptions" in plain
    rows = [line.split("│")[1].strip() for line in result.output.splitlines() if line.startswith("│")]
    assert rows == ["0", "1", "2", "3"]


def test_json_holds_every_number_and_is_the_same_again() -> None:
    result = command("--simulate", "--max-lag", "1", "--json")
    found = json.loads(result.output)
    assert (found["recipe_max_lag"], found["varied"], found["splits"]) == (0, None, None)
    assert [lag["max_lag"] for lag in found["lags"]] == [0, 1]
    without, lagged = found["lags"]
    assert without["staleness"] == {"0": 1.0}
    assert set(lagged["staleness"]) <= {"0", "1"}
    assert without["step_seconds"] == pytest.approx(without["waited_seconds"] + without["worked_seconds"])
    assert without["episode_seconds"] == pytest.approx(without["step_seconds"] / 4)
    assert lagged["episode_seconds"] < without["episode_seconds"]
    assert command("--simulate", "--max-lag", "1", "--json").output == result.output


def test_measured_rates_take_the_place_of_assumed_ones(tmp_path: Path) -> None:
    rates = tmp_path / "rates.json"
    rates.write_text(rates_as_json(EngineRates(fixed_seconds=1.0)), encoding="utf-8")
    slow = json.loads(command("--simulate", "--engine-rates", str(rates), "--json").output)
    assert f"engines as measured in {rates}" in slow["basis"]
    # Four episodes of at least one turn of 1024 tokens, a second each.
    assert slow["lags"][0]["waited_seconds"] > 1024


def test_other_splits_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_empg.planner.simulation.choice.EPISODES", 40)
    found = json.loads(command("--simulate", "--choose", "--json").output)
    assert {split["trainer_nodes"] for split in found["splits"]} >= {3, 4, 5}
    assert {split["groups"] for split in found["splits"]} == {2, 4}
    assert all(8 * split["trainer_nodes"] + 4 * split["engines"] == 64 for split in found["splits"])


SMALLEST = ("actor.context_parallel=1", "actor.max_tokens_per_microbatch=32768", "engines.count=1")


def test_where_no_split_leaves_room_that_is_said() -> None:
    result = command("--simulate", "--choose", *SMALLEST)
    assert result.exit_code == 0, result.output
    assert "No split of 12 GPUs into whole trainer nodes and engines leaves 5 GiB" in " ".join(
        result.output.split()
    )


def test_a_variation_without_a_lag_is_refused() -> None:
    result = command("--simulate", "--vary")
    assert isinstance(result.exception, RecipeError)
    assert "give --max-lag or rollout.max_lag" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--max-lag", "1", "--gpus", "64"), "--max-lag: say --simulate too"),
        (("--max-lag", "0", "--gpus", "64"), "--max-lag: say --simulate too"),
        (("--vary", "--choose", "--gpus", "64"), "--vary, --choose: say --simulate too"),
        (("--simulate", "--gpus", "64"), "the GPUs are the recipe's"),
        ((), "Missing option '--gpus'"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(arguments: tuple[str, ...], said: str) -> None:
    result = command(*arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())


def test_latencies_without_a_run_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "latencies.json"
    path.write_text("[1.0]", encoding="utf-8")
    result = command("--simulate", "--tool-latency", str(path))
    assert isinstance(result.exception, RecipeError)
    assert "--tool-latency goes with --from" in str(result.exception)


def test_a_gpu_that_is_not_known_is_named() -> None:
    result = command("--simulate", "--gpu", "T4")
    assert isinstance(result.exception, RecipeError)
    assert "--gpu is T4; allowed: A100, H100" in str(result.exception)
