"""How each process of a run is started, from the plan of the run alone."""

from dataclasses import replace

import pytest

from megatron_empg.launch import commands
from megatron_empg.launch.commands import EngineSettings, TrainerPlace
from megatron_empg.launch.run_plan import RunPlan, ServicePlan
from megatron_empg.rollout.server import parse_arguments

SEARCH = ServicePlan("search", "search_url", "EMPG_SEARCH_TOKEN", ("-m", "shop.search", "corpus.jsonl"))
PLAN = RunPlan(
    kind="train", run_folder="/runs/a", steps=8, checkpoint=4, finished=False, environment="deep_search",
    trainer_ranks=8, engines=2, engine_size=2, engine_arguments=("--model", "m"), services=(SEARCH,),
)  # fmt: skip
URLS = ["http://10.0.0.3:10008", "http://10.0.0.3:10009"]
ENGINES = ("--engine", URLS[0], "--engine", URLS[1])


def test_an_engine_s_server_reads_what_it_is_told() -> None:
    settings = EngineSettings(
        "models/a", 4096, "bfloat16", 64, 2, threads=3, kv_cache_bytes=2**30, backend="broadcast"
    )
    command = commands.engine("python", settings.arguments(), "10.0.0.3", 10008, ("--enforce-eager",))
    assert command[:3] == ("python", "-m", "megatron_empg.rollout.server")
    own, extra = parse_arguments(list(command[3:]))
    assert (own.model, own.host, own.port, own.dtype) == ("models/a", "10.0.0.3", 10008, "bfloat16")
    assert (own.max_model_len, own.max_num_seqs, own.tensor_parallel) == (4096, 64, 2)
    assert (own.threads, own.kv_cache_bytes, own.backend) == (3, 2**30, "broadcast")
    assert extra == ["--enforce-eager"]


def test_what_is_not_chosen_is_the_server_s_choice() -> None:
    own, extra = parse_arguments(
        list(commands.engine("python", EngineSettings("m", 64).arguments(), "::1", 1)[3:])
    )
    assert (own.threads, own.kv_cache_bytes, own.backend, extra) == (1, None, "broadcast", [])


def test_the_rollout_service_is_told_of_every_engine() -> None:
    command = commands.driver("python", PLAN, "10.0.0.3", 10001, URLS)
    module = "megatron_empg.launch.rollout_service"
    assert command == (
        "python", "-m", module, "/runs/a/recipe.yaml", "--host", "10.0.0.3", "--port", "10001", *ENGINES,
    )  # fmt: skip


@pytest.mark.parametrize("number", [0, 1])
def test_a_node_s_ranks_meet_at_the_first_node(number: int) -> None:
    place = TrainerPlace(4, "10.0.0.1", 10000, nodes=2, number=number)
    command = commands.trainer("python", PLAN, place, "http://10.0.0.3:10001", URLS)
    assert command == (
        "python", "-m", "megatron_empg.launch.torchrun", "--nnodes", "2", "--node-rank", str(number),
        "--nproc-per-node", "4", "--master-addr", "10.0.0.1", "--master-port", "10000",
        "-m", "megatron_empg.trainer.worker", "train", "/runs/a/recipe.yaml",
        "--driver", "http://10.0.0.3:10001", *ENGINES,
    )  # fmt: skip


def test_supervised_ranks_need_neither_driver_nor_engines() -> None:
    command = commands.trainer("python", replace(PLAN, kind="sft"), TrainerPlace(1, "127.0.0.1", 1))
    assert command[-4:] == ("-m", "megatron_empg.trainer.worker", "sft", "/runs/a/recipe.yaml")


def test_a_service_s_command_is_its_environment_s() -> None:
    command = commands.service("python", SEARCH, "10.0.0.3", 10002)
    assert command == ("python", *SEARCH.arguments, "--host", "10.0.0.3", "--port", "10002")


@pytest.mark.parametrize(
    ("stall", "silence", "words"),
    [("", "", ()), ("9", "", ("--stall", "9")), ("9", "20", ("--stall", "9", "--silence", "20"))],
)
def test_the_watchdog_is_told_what_the_user_says(stall: str, silence: str, words: tuple[str, ...]) -> None:
    command = commands.watchdog("python", PLAN, stall, silence)
    assert command == ("python", "-m", "megatron_empg.cluster.watchdog", "/runs/a", *words)


@pytest.mark.parametrize(("gpus", "device"), [(8, ("--gpu", "--gpus", "8")), (0, ("--no-gpu",))])
def test_preflight_checks_the_ports_and_gpus_of_the_run(gpus: int, device: tuple[str, ...]) -> None:
    command = commands.preflight("python", PLAN, gpus, "1-2,5", "out.json", ("--quick",))
    words = ("--ports", "1-2,5", "--json", "out.json", "--quick")
    assert command == ("python", "tools/preflight.py", "/runs/a/recipe.yaml", *device, *words)


@pytest.mark.parametrize(("like", "words"), [("", ()), ("m", ("--like", "m"))])
def test_a_conversion_is_like_a_model_where_one_is_given(like: str, words: tuple[str, ...]) -> None:
    command = commands.conversion("python", "a", "b", like)
    assert command == ("python", "tools/convert_checkpoint.py", "to-hf", "a", "b", *words)


def test_no_command_holds_a_secret() -> None:
    place = TrainerPlace(1, "127.0.0.1", 1)
    every = [
        commands.engine("python", PLAN.engine_arguments, "a", 1), commands.driver("python", PLAN, "a", 1, URLS),
        commands.trainer("python", PLAN, place, "http://a", URLS), commands.service("python", SEARCH, "a", 1),
    ]  # fmt: skip
    assert "TOKEN" not in str(every)


@pytest.mark.parametrize(
    ("host", "url"), [("127.0.0.1", "http://127.0.0.1:8"), ("::1", "http://[::1]:8"), ("a", "http://a:8")]
)
def test_an_ipv6_address_stands_in_brackets(host: str, url: str) -> None:
    assert commands.url_of(host, 8) == url
