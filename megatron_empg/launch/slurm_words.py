"""What Slurm's programs print, read: pure functions of text, tested over recorded answers."""

from __future__ import annotations

import re
from collections.abc import Sequence

_GIVEN_UP = ("down", "fail")
"""How the states begin of nodes that the controller counts on no more: down, down*, fail, failing."""
_TASK_ENDED = re.compile(
    r"^srun: error: (\S+): tasks? [\d,-]+: (?:Exited with exit code (\d+)|(.+))$", re.MULTILINE
)
_SIGNALS = {"Hangup": 1, "Interrupt": 2, "Aborted": 6, "Bus error": 7, "Segmentation fault": 11, "Terminated": 15}
"""As strsignal calls them; any other counts as SIGKILL."""


def lines(text: str) -> list[str]:
    """The lines that say something, without blanks around them."""
    stripped = [line.strip() for line in text.splitlines()]
    return [line for line in stripped if line]


def down_nodes(sinfo: str) -> set[str]:
    """Names of nodes that the controller has given up, of `sinfo --noheader --Node --format='%N %t'`.

    Example: "n1 idle\\nn2 down*" gives {"n2"}.
    """
    found = set()
    for line in lines(sinfo):
        name, _, state = line.partition(" ")
        if state.strip().startswith(_GIVEN_UP):
            found.add(name)
    return found


def field(oneliner: str, name: str) -> str:
    """The value of NAME=value in a line of `scontrol show … --oneliner`; "" where it is missing or "(null)".

    Example: field("JobId=7 ExcNodeList=n[3-4] Restarts=0", "ExcNodeList") is "n[3-4]".
    """
    found = re.search(rf"(?:^|\s){re.escape(name)}=(\S*)", oneliner)
    if found is None or found.group(1).startswith("("):
        return ""
    return found.group(1)


def binds_processors(config: str) -> bool:
    """Whether Slurm would bind tasks to processors, by `scontrol show config`."""
    return re.search(r"^TaskPlugin\s*=.*affinity", config, re.MULTILINE) is not None


def has_container_options(srun_help: str) -> bool:
    """Whether srun takes --container-image, so Pyxis is there, by `srun --help`."""
    return "--container-image" in srun_help


def step_ids(squeue: str) -> list[str]:
    """Steps in the output of `squeue --steps --format=%i` that srun started, without the batch script.

    Example: "7.0\\n7.12\\n7.batch\\n7.extern" gives ["7.0", "7.12"].
    """
    return [line for line in lines(squeue) if re.search(r"\.\d+$", line)]


def steps_named(squeue: str, name: str) -> list[str]:
    """Numbers of the steps with that name in the output of `squeue --steps --format="%i %j"`.

    Example: "7.0 search\\n7.3 engine_0\\n7.batch batch" gives ["7.3"] for "engine_0".
    """
    found = []
    for line in lines(squeue):
        step, _, called = line.partition(" ")
        if called.strip() == name:
            found += step_ids(step)
    return found


def gpus_in(word: str) -> str:
    """The number in what --gpus-per-node says: "h100:8" and "8" are "8"; "" for nothing."""
    return word.rpartition(":")[2]


def script_options(script: str) -> list[str]:
    """The words of a script's #SBATCH lines, which end where its commands begin.

    Example: "#SBATCH --nodes=8\\n#SBATCH -J name # why" gives ["--nodes=8", "-J", "name"].
    """
    words: list[str] = []
    for line in script.splitlines():
        if line.startswith("#SBATCH "):
            words += line[len("#SBATCH ") :].partition(" #")[0].split()
        elif line.strip() and not line.startswith("#"):
            break
    return words


def option(words: Sequence[str], name: str, letter: str = "") -> str | None:
    """The value of --NAME=value, --NAME value, -Lvalue or -L value; the last one given counts. None without it."""
    found = None
    for index, word in enumerate(words):
        following = words[index + 1] if index + 1 < len(words) else ""
        if word.startswith(f"--{name}="):
            found = word.partition("=")[2]
        elif word == f"--{name}" or (letter and word == f"-{letter}"):
            found = following
        elif letter and re.match(rf"-{letter}\w", word):
            found = word[2:]
    return found


def most_nodes(word: str) -> int | None:
    """How many nodes --nodes may give: "3" is 3, "2-4" is 4; None for anything else."""
    last = word.rpartition("-")[2]
    return int(last) if re.fullmatch(r"[1-9][0-9]*", last) else None


def task_statuses(srun: str) -> list[tuple[str, int]]:
    """Node and status of tasks that failed, in the order in which srun told of them; negative for a signal.

    Under --kill-on-bad-exit the others are killed after the first, and srun's own status may be one of theirs.
    Example: "srun: error: n2: task 1: Exited with exit code 78\\nsrun: error: n1: task 0: Terminated" gives
    [("n2", 78), ("n1", -15)].
    """
    found = []
    for node, status, signal in _TASK_ENDED.findall(srun):
        if status:
            found.append((node, int(status)))
        else:
            name = signal.partition(" (")[0]
            found.append((node, -_SIGNALS.get(name, 9)))
    return found
