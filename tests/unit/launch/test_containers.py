"""How a command gets into an image, and what it sees there."""

import pytest

from megatron_empg.launch.containers import Container, choose_container, mounts
from megatron_empg.launch.job_error import JobError


def test_without_an_image_nothing_is_added() -> None:
    assert choose_container("", "", "/repo", pyxis=True, apptainer=True) == Container()


def test_pyxis_goes_before_apptainer() -> None:
    found = choose_container("reg#i:1", "/repo:/repo", "/repo", pyxis=True, apptainer=True)
    assert found.in_task == ()
    assert found.in_srun == (
        "--container-image=reg#i:1", "--container-workdir=/repo", "--no-container-mount-home",
        "--container-mounts=/repo:/repo",
    )  # fmt: skip
    found = choose_container("i.sif", "/repo:/repo", "/repo", pyxis=False, apptainer=True)
    assert found == Container(
        in_task=("apptainer", "exec", "--nv", "--bind", "/repo:/repo", "--pwd", "/repo", "i.sif")
    )


def test_an_image_that_nothing_runs_is_refused() -> None:
    with pytest.raises(JobError, match=r"srun has no --container-image .*no apptainer") as refused:
        choose_container("i.sif", "", "/repo", pyxis=False, apptainer=False)
    assert refused.value.exit_code == 10


def test_what_is_to_be_made_is_seen_by_the_folder_it_is_made_in() -> None:
    there = {"/data", "/data/corpus.jsonl", "/runs"}
    found = mounts("/repo", "/a:/b", ["/runs/mine/run", "/data/corpus.jsonl", "relative", "/none", "/runs/x"],
                   there.__contains__)  # fmt: skip
    assert found == "/repo:/repo,/a:/b,/runs:/runs,/data/corpus.jsonl:/data/corpus.jsonl"
