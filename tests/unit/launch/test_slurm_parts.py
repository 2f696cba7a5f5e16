"""The steps of a run: which parts, where, with which commands and variables."""

from dataclasses import replace

import pytest

from megatron_empg.launch.exit_codes import ExitCode
from megatron_empg.launch.job_settings import JobSettings, TrainSettings
from megatron_empg.launch.parts import RunPart
from megatron_empg.launch.placement import JobShape, NodeShares, Placement
from megatron_empg.launch.run_plan import RunPlan, ServicePlan
from megatron_empg.launch.slurm_parts import SlurmParts, variables

PLAN = RunPlan(
    kind="train",
    run_folder="/runs/a",
    steps=3,
    checkpoint=0,
    finished=False,
    environment="deep_search",
    trainer_ranks=16,
    engines=4,
    engine_size=4,
    engine_arguments=("--model", "m"),
)
SEARCH = ServicePlan("search", "search_url", "A_TOKEN", ("-m", "search", "corpus"))
SHOP = ServicePlan("shop", "shop_url", "B_TOKEN", ("-m", "shop"))
ADDRESSES = {"n1": "10.0.0.1", "n2": "10.0.0.2", "n3": "10.0.0.3", "n4": "10.0.0.4"}


def parts(
    plan: RunPlan = PLAN, *, shared: bool = False, cpu: bool = False, job: str = "1", **training: object
) -> SlurmParts:
    settings = TrainSettings("r.yaml", (), JobShape(4, 8, cpu=cpu), "79", **training)  # type: ignore[arg-type]
    placement = Placement(("n1", "n2"), ("n3", "n4"), NodeShares(2, 8, 2, 2))
    if shared:
        placement = Placement(("n1",), ("n1",), NodeShares(1, 4, 1, 2, shared=True))
    return SlurmParts(
        JobSettings("/repo", "/s.sh", "python", job=job), settings, plan, placement, ADDRESSES, "/runs/a/logs/1.1"
    )


def stages(found: SlurmParts) -> list[list[str]]:
    return [[part.name for part in stage] for stage in found.stages()]


def part(found: SlurmParts, name: str) -> RunPart:
    (one,) = [part for stage in found.stages() for part in stage if part.name == name]
    return one


def test_the_stages_of_a_run() -> None:
    run = ["engine_0", "engine_1", "engine_2", "engine_3", "driver", "trainer", "watchdog"]
    assert stages(parts()) == [["preflight"], run]
    assert stages(parts(preflight=False)) == [run]
    whole = parts(replace(PLAN, services=(SEARCH, SHOP)), megatron_checkpoint="/m")
    assert stages(whole) == [["conversion"], ["preflight"], ["search", "shop"], run]
    assert stages(parts(replace(PLAN, engines=0, kind="sft"))) == [["preflight"], ["trainer", "watchdog"]]


def test_each_part_runs_where_it_belongs_and_has_its_code() -> None:
    found = parts(replace(PLAN, services=(SEARCH,)), megatron_checkpoint="/m")
    told = {
        part.name: (part.nodes, part.tasks_per_node, part.code, part.ends)
        for stage in found.stages()
        for part in stage
    }
    everywhere = ("n1", "n2", "n3", "n4")
    assert told == {
        "conversion": (("n1",), 1, ExitCode.CONVERSION, True),
        "preflight": (everywhere, 1, ExitCode.PREFLIGHT, True),
        "search": (("n3",), 1, ExitCode.SERVICE, False),
        "engine_0": (("n3",), 1, ExitCode.ENGINES, False),
        "engine_1": (("n3",), 1, ExitCode.ENGINES, False),
        "engine_2": (("n4",), 1, ExitCode.ENGINES, False),
        "engine_3": (("n4",), 1, ExitCode.ENGINES, False),
        "driver": (("n3",), 1, ExitCode.DRIVER, False),
        "trainer": (("n1", "n2"), 1, ExitCode.TRAINER, True),
        "watchdog": (everywhere, 1, ExitCode.WATCHDOG, False),
    }


@pytest.mark.parametrize("plan", [PLAN, replace(PLAN, engines=0, kind="sft")])
def test_what_the_trainer_is_at_its_heartbeat_says(plan: RunPlan) -> None:
    assert part(parts(plan), "trainer").heartbeat == "/runs/a/heartbeats/rank_0.json"


def test_engines_must_be_healthy_in_the_plan_s_time() -> None:
    assert part(parts(replace(PLAN, engine_start_seconds=70)), "engine_3").start_seconds == 70


def test_whoever_serves_counts_as_frozen_after_the_plan_s_time() -> None:
    found = parts(replace(PLAN, silence_seconds=45, core_silence_seconds=660, services=(SEARCH,)))
    probes: dict[str, dict[str, float]] = {}
    for stage in found.stages():
        for one in stage:
            probes[one.name] = {probe.path: probe.silent_seconds for probe in one.probes}
    for name in ("search", "driver"):
        assert probes[name] == {"/health": 45}
    for name in ("engine_0", "engine_1", "engine_2", "engine_3"):
        assert probes[name] == {"/health": 45, "/weight_info": 660}
    for name in ("preflight", "trainer", "watchdog"):
        assert probes[name] == {}


def test_engines_listen_node_by_node_and_everybody_is_told_the_same() -> None:
    found = parts(job="5")
    urls = [
        "http://10.0.0.3:10648", "http://10.0.0.3:10649", "http://10.0.0.4:10650", "http://10.0.0.4:10651",
    ]  # fmt: skip
    assert found.engines == urls
    assert [part(found, f"engine_{number}").addresses for number in range(4)] == [(url,) for url in urls]
    assert part(found, "driver").addresses == ("http://10.0.0.3:10641",)
    for name in ("driver", "trainer"):
        command = part(found, name).command
        assert [word for word in command if word in urls] == urls
    trainer = part(found, "trainer").command
    assert trainer[trainer.index("--driver") + 1] == "http://10.0.0.3:10641"


@pytest.mark.parametrize(("job", "first"), [("0", 10_000), ("1", 10_128), ("169", 31_632), ("171", 10_128)])
def test_ports_follow_from_the_jobs_number(job: str, first: int) -> None:
    assert parts(job=job).ports.base == first
    given = replace(parts(job=job), job=JobSettings("/repo", "/s.sh", "python", job=job, base_port="7000"))
    assert given.ports.base == 7000


def test_engines_beside_the_trainer_are_told_their_first_gpu() -> None:
    command = part(parts(shared=True), "engine_1").command
    assert command[-8:] == ("--number", "1", "--per-node", "2", "--gpus-per-node", "8", "--first-gpu", "4")
    assert part(parts(shared=True), "watchdog").nodes == ("n1",)
    assert "--first-gpu" not in part(parts(), "engine_0").command
    assert "--gpus-per-node" not in part(parts(cpu=True), "engine_0").command


def test_what_needs_no_gpu_sees_none() -> None:
    found = parts(replace(PLAN, services=(SEARCH,)))
    without = {part.name for stage in found.stages() for part in stage if "--no-gpu" in part.command[:6]}
    assert without == {"search", "driver", "watchdog"}


def test_preflight_looks_at_every_port_of_the_job_but_its_own() -> None:
    found = part(parts(preflight_arguments=("--min-disk", "1")), "preflight")
    words = list(found.command)
    assert words[words.index("--ports") + 1] == "10128-10130,10132-10139"
    assert words[words.index("--gpus") + 1] == "8"
    assert words[-2:] == ["--min-disk", "1"]
    assert found.environment == {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "10131"}
    assert "--gpu" not in part(parts(cpu=True), "preflight").command


def test_the_services_of_a_job_are_those_that_the_environment_names() -> None:
    assert parts().services == {}
    found = parts(replace(PLAN, services=(SEARCH, SHOP)))
    assert found.services == {"search": "http://10.0.0.3:10130", "shop": "http://10.0.0.3:10133"}
    told = variables(found, "secret")
    assert {name: told[name] for name in ("A_TOKEN", "B_TOKEN", "EMPG_TOKEN")} == dict.fromkeys(
        ("A_TOKEN", "B_TOKEN", "EMPG_TOKEN"), "secret"
    )
    assert part(found, "search").command[-4:] == ("--host", "10.0.0.3", "--port", "10130")
    assert part(found, "shop").code is ExitCode.SERVICE


def test_the_token_is_in_the_environment_alone() -> None:
    found = parts(replace(PLAN, services=(SEARCH,)))
    assert variables(found, "secret")["EMPG_TOKEN"] == "secret"
    assert all("secret" not in part.command for stage in found.stages() for part in stage)


def test_every_step_knows_roles_addresses_and_ports() -> None:
    told = variables(parts(), "secret")
    assert told["EMPG_TRAINER_NODE_NAMES"] == "n1 n2"
    assert told["EMPG_ROLLOUT_NODE_NAMES"] == "n3 n4"
    assert told["EMPG_ADDRESSES"].split()[0] == "n1=10.0.0.1"
    assert (told["EMPG_BASE_PORT"], told["EMPG_WEIGHTS_PORT"]) == ("10128", "10132")
    assert told["EMPG_RUN_FOLDER"] == "/runs/a"
