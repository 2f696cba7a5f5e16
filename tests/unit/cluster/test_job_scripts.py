"""What the job scripts do without a Slurm: variables of each step, addresses of nodes. Its clients are stubs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CACHES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "VLLM_CACHE_ROOT", "CUDA_CACHE_PATH")
TRAINER_ONLY = ("CUDA_DEVICE_MAX_CONNECTIONS", "PYTORCH_ALLOC_CONF")


def environment_of(*command: str, **given: str) -> dict[str, str]:
    """The variables that a task's command sees, under slurm/env.sh."""
    print_all = "import os, json; print(json.dumps(dict(os.environ)))"
    done = subprocess.run(
        ["bash", "slurm/env.sh", *(command or (sys.executable, "-c", print_all))],
        cwd=ROOT, env={"PATH": os.environ["PATH"], "SLURMD_NODENAME": "here", **given}, check=True,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def test_every_step_compiles_into_a_folder_of_its_node_that_is_the_users_own(tmp_path: Path) -> None:
    seen = environment_of(TMPDIR=str(tmp_path))
    folder = tmp_path / f"empg_caches_{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in CACHES:
        assert Path(seen[name]).parent == folder
    assert 1 <= int(seen["TORCHINDUCTOR_COMPILE_THREADS"]) <= 4
    assert environment_of(TMPDIR=str(tmp_path))["TRITON_CACHE_DIR"] == seen["TRITON_CACHE_DIR"], "used again"


def test_a_link_in_place_of_the_caches_is_not_followed(tmp_path: Path) -> None:
    """In a /tmp that all may write, another user could have made it."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / f"empg_caches_{os.getuid()}").symlink_to(tmp_path / "theirs")
    seen = environment_of(TMPDIR=str(tmp_path))
    folder = Path(seen["TRITON_CACHE_DIR"]).parent
    assert folder.is_dir()
    assert folder.name.startswith("empg_caches.")
    assert list((tmp_path / "theirs").iterdir()) == []


def test_what_the_user_has_set_stays(tmp_path: Path) -> None:
    given = dict.fromkeys(CACHES, "/mine") | {"TORCHINDUCTOR_COMPILE_THREADS": "9", "NCCL_DEBUG": "INFO"}
    seen = environment_of(TMPDIR=str(tmp_path), **given)
    assert {name: seen[name] for name in given} == given


def test_what_trainer_ranks_alone_want_is_set_for_no_other_step(tmp_path: Path) -> None:
    assert not set(TRAINER_ONLY) & set(environment_of(TMPDIR=str(tmp_path)))


def test_the_trainer_step_prints_and_sets_what_its_ranks_want(tmp_path: Path) -> None:
    """Its own command; what it would become is a Python that shows the variables instead of torchrun."""
    show = (
        "import os, sys\n"
        "from megatron_empg.trainer import slurm_job\n"
        "slurm_job.trainer_command = lambda recipe, rest: [sys.executable, '-c', "
        "'import os, json; print(json.dumps(dict(os.environ)))']\n"
        "sys.argv = ['slurm_job', 'trainer', 'recipes/quickstart.yaml']\n"
        "slurm_job.main()\n"
    )
    paths = {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    seen = environment_of(sys.executable, "-c", show, **paths)
    assert seen["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert seen["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    given = {"CUDA_DEVICE_MAX_CONNECTIONS": "8", "PYTORCH_CUDA_ALLOC_CONF": "backend:native"}
    seen = environment_of(sys.executable, "-c", show, **paths, **given)
    assert {name: seen.get(name) for name in (*given, "PYTORCH_ALLOC_CONF")} == {
        **given,
        "PYTORCH_ALLOC_CONF": None,
    }


def addresses(tmp_path: Path, nodes: dict[str, tuple[str, str]], **variables: str) -> tuple[int, str]:
    """`find_addresses` of lib.sh for nodes by (NodeAddr, NodeHostName): exit code, what it exports or says."""
    lines = "\n".join(
        f'  {name}) echo "NodeName={name} Arch=x86 NodeAddr={address} NodeHostName={host} Version=22" ;;'
        for name, (address, host) in nodes.items()
    )
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/bash\ncase $3 in\n{lines}\nesac\n")
    getent = tmp_path / "getent"
    getent.write_text(
        '#!/bin/bash\n[ "$2" = gpu-a ] && echo "10.1.1.1 STREAM gpu-a"\n[ "$2" = gpu-b ] && exit 2\ntrue\n'
    )
    srun = tmp_path / "srun"  # EMPG_INTERFACE: the address on each node
    srun.write_text('#!/bin/bash\n[ -n "$FOUND" ] && echo "2: ib0    inet $FOUND/24 scope global ib0"\ntrue\n')
    for stub in (scontrol, getent, srun):
        stub.chmod(0o755)
    script = (
        f"cd {ROOT}; EMPG_HOME={ROOT}; EMPG_INTERFACE=${{EMPG_INTERFACE:-}}; source slurm/lib.sh; "
        f"TRAINERS=({' '.join(list(nodes)[:1])}) ROLLOUTS=({' '.join(list(nodes)[1:])}); "
        'find_addresses; echo "$EMPG_ADDRESSES"'
    )
    done = subprocess.run(
        ["bash", "-c", script], env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **variables},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_addresses_are_slurms_own_or_what_its_names_resolve_to(tmp_path: Path) -> None:
    code, said = addresses(tmp_path, {"n1": ("10.1.1.7", "n1"), "n2": ("gpu-a", "n2")})
    assert (code, said.strip()) == (0, "n1=10.1.1.7 n2=10.1.1.1")


def test_simulated_nodes_of_one_machine_may_meet_over_loopback(tmp_path: Path) -> None:
    code, said = addresses(tmp_path, {"n1": ("127.0.0.1", "box"), "n2": ("127.0.0.1", "box")})
    assert (code, said.strip()) == (0, "n1=127.0.0.1 n2=127.0.0.1")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.1.1", "node n2 has the address 127.0.1.1, which other nodes cannot reach"),
        ("169.254.3.4", "node n2 has the address 169.254.3.4, which other nodes cannot reach"),
        ("fd00::12", "node n2 has the IPv6 address fd00::12 in Slurm; .*IPv4: set EMPG_INTERFACE"),
        ("gpu-b", "node n2, gpu-b in Slurm, resolves to no IPv4 address that others reach: set EMPG_INTERFACE"),
    ],
)
def test_an_address_that_others_cannot_use_is_refused_by_node(tmp_path: Path, address: str, said: str) -> None:
    code, found = addresses(tmp_path, {"n1": ("10.1.1.7", "n1"), "n2": (address, "n2")})
    assert code == 10
    assert re.search(said, found), found


def test_an_interface_without_a_usable_address_is_named(tmp_path: Path) -> None:
    nodes = {"n1": ("fd00::1", "n1"), "n2": ("fd00::2", "n2")}
    code, said = addresses(tmp_path, nodes, EMPG_INTERFACE="ib0", FOUND="10.2.2.2")
    assert (code, said.strip()) == (0, "n1=10.2.2.2 n2=10.2.2.2")
    code, said = addresses(tmp_path, nodes, EMPG_INTERFACE="ib0")
    assert (code, "EMPG_INTERFACE is ib0, which has no IPv4 address on n1" in said) == (10, True), said
    code, said = addresses(tmp_path, nodes, EMPG_INTERFACE="lo", FOUND="127.0.0.1")
    assert (code, "cannot reach" in said) == (10, True), said


def check_said(tmp_path: Path, **given: str) -> str:
    """What --check says where there is no Slurm; it finds a fault."""
    (tmp_path / "tools").mkdir()
    for name in ("bash", "dirname", "realpath", "sed", "tail", "grep", "ps"):
        (tmp_path / "tools" / name).symlink_to(shutil.which(name) or "/none")
    done = subprocess.run(
        [
            *("bash", "slurm/deepsearch_32b.sh", "--check", "run.steps=3", "engines.kv_cache_gib=0.125"),
            *("evaluation.questions=8", f"run.folder={tmp_path / 'run'}", "actor.tensor_parallel=1"),
        ],
        cwd=ROOT, env={"PATH": str(tmp_path / "tools"), "HOME": str(tmp_path), "EMPG_DEVICE": "cpu",
        "EMPG_RECIPE": "recipes/quickstart.yaml", "EMPG_MINIATURE": "1",
        "EMPG_TRAINER_NODES": "1", "EMPG_ROLLOUT_NODES": "1",
        "EMPG_GPUS_PER_NODE": "1", "EMPG_PYTHON": sys.executable, **given}, check=False,
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 10, done.stdout + done.stderr
    return done.stderr


@pytest.mark.parametrize("python", ["/no/python", f"{sys.executable} -S"])
def test_a_python_without_the_packages_is_named_with_the_fix(tmp_path: Path, python: str) -> None:
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nexec {python} "$@"\n')
    wrapper.chmod(0o755)
    said = check_said(tmp_path, EMPG_PYTHON=str(wrapper))
    assert f"EMPG_PYTHON is '{wrapper}', which lacks packages" in said
    assert "Traceback" not in said


def test_a_check_without_slurm_looks_at_recipe_and_model_and_says_what_it_could_not(tmp_path: Path) -> None:
    """It plays one question through template, parser and search on the way."""
    said = check_said(tmp_path)
    assert "recipe and model are well; Slurm was not asked, since this machine has no sbatch: check again " in said
    assert "error" not in said, "what could not be asked is no fault"
    assert "one question, " in said
    assert "<|im_start|>user" in said, "the prompt as the model's own template writes it"
    assert re.search(r"turn: .*<search>", said)
    assert "observation: found " in said
    assert "the episode ends with reward 1" in said


def test_without_data_the_command_that_prepares_it_is_named(tmp_path: Path) -> None:
    """The miniature is trained on where it is asked for alone."""
    said = check_said(tmp_path, EMPG_MINIATURE="0")
    assert "bash slurm/prepare.sh deepsearch data/deepsearch" in said
    assert "EMPG_MINIATURE=1" in said
    assert "one question" not in said


def test_a_miniature_that_is_neither_wanted_nor_not_is_refused(tmp_path: Path) -> None:
    assert "EMPG_MINIATURE is 'yes'; allowed: 0, 1" in check_said(tmp_path, EMPG_MINIATURE="yes")


def test_the_errors_of_a_failed_step_stand_above_the_ends_of_its_logs(tmp_path: Path) -> None:
    recorded = (ROOT / "tests/unit/fixtures/engine_without_memory.log").read_text(encoding="utf-8")
    (tmp_path / "engines.n1.0.log").write_text(recorded, encoding="utf-8")
    (tmp_path / "engines.n2.0.log").write_text("train/error: none\nan OSError: within\nended\n", encoding="utf-8")
    done = subprocess.run(
        ["bash", "-c", f"EMPG_HOME={ROOT}; source slurm/lib.sh; EMPG_LOGS={tmp_path}; fail engines"],
        cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 14, done.stderr
    first, *rest = done.stdout.splitlines()
    assert first.startswith(f"{tmp_path}/engines.n1.0.log:(EngineCore pid=")
    assert "ValueError: Available memory on node 0 (22.2/23.54 GiB) on kv cache allocation is less than" in first
    assert f"==> {tmp_path}/engines.n1.0.log <==" in rest[0]
    assert rest[-1] == "ended"


@pytest.mark.parametrize("python", ["/no/python", f"{sys.executable} -S"])
def test_a_preparation_under_a_python_without_the_packages_says_where_to_get_them(
    tmp_path: Path, python: str
) -> None:
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nexec {python} "$@"\n', encoding="utf-8")
    wrapper.chmod(0o755)
    done = subprocess.run(
        ["bash", "slurm/prepare.sh", "deepsearch", str(tmp_path / "data"), "--dry-run"], cwd=ROOT,
        env={"PATH": os.environ["PATH"], "EMPG_PYTHON": str(wrapper)}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 10, done.stdout
    assert f"EMPG_PYTHON is '{wrapper}', which " in done.stderr
    assert "(README.md, 'On a cluster'; without a GPU 'make setup')" in done.stderr


def services_of(words: str, tmp_path: Path) -> list[str]:
    """What `choose_services` of run.sh makes of what the package says: names, URLs, tokens and codes."""
    script = (
        f"EMPG_HOME={ROOT}; source slurm/run.sh; address_of() {{ echo 10.0.0.9; }}; ROLLOUTS=(n1) "
        f"EMPG_BASE_PORT=12000 EMPG_TOKEN=secret services={words!r}; choose_services; "
        'for i in "${!SERVICES[@]}"; do n=${SERVICES[i]}; '
        'echo "$n ${SERVICE_SETTINGS[i]} ${SERVICE_URLS[i]} ${CODES[$n]}"; done; '
        "env | grep _TOKEN= | sort"
    )
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True,
        timeout=30, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_the_services_of_a_job_are_those_that_the_environment_names(tmp_path: Path) -> None:
    assert services_of("", tmp_path) == []
    assert services_of("search search_url A_TOKEN", tmp_path) == [
        "search search_url http://10.0.0.9:12002 13",
        "A_TOKEN=secret",
    ]
    assert services_of("search search_url A_TOKEN shop shop_url B_TOKEN", tmp_path) == [
        "search search_url http://10.0.0.9:12002 13",
        "shop shop_url http://10.0.0.9:12005 13",
        "A_TOKEN=secret",
        "B_TOKEN=secret",
    ]
