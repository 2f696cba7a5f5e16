"""Stands in for `empg train` at the boundary of processes: it writes what a run leaves, and trains nothing.

The file BEHAVIOUR beside the run folder says what it does; without one it finishes.
"""

import json
import signal
import sys
import time
from pathlib import Path

STEPS = 2


def main() -> int:
    words = dict(word.split("=", 1) for word in sys.argv[3:] if "=" in word)
    folder = Path(words["run.folder"])
    told = folder.parent / "BEHAVIOUR"
    behaviour = told.read_text(encoding="utf-8") if told.exists() else "finish"
    with (folder.parent / "STARTS").open("a", encoding="utf-8") as file:
        file.write(f"{folder.name}\n")
    if behaviour == "unusable":
        print("error: model.path: there is none")
        return 2
    evaluate(folder, 0, "0101")
    log(folder, "metrics", {"step": 1, "train/success": 0.25, "train/episodes": 128, "time/step": 1.0})
    if behaviour == "collapse":
        print("error: trainer ended with status 78; end of trainer.log:\nerror: step 1: the batch has 0 groups")
        return 1
    if behaviour == "fail":
        print("RuntimeError: a disk is gone")
        return 1
    if behaviour == "wait":
        return wait(folder)
    finish(folder, "1" * 4 if "algorithm.modulation=empg" in sys.argv else "0111")
    return 0


def wait(folder: Path) -> int:
    """As `empg train` does when it is interrupted: it ends in order, behind its step."""
    asked: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    (folder / "WAITS").touch()
    while not asked:
        time.sleep(0.01)
    return 0


def finish(folder: Path, answered: str) -> None:
    log(folder, "metrics", {"step": STEPS, "train/success": 0.5, "train/episodes": 130, "policy/entropy": 0.125})
    evaluate(folder, STEPS, answered)
    (folder / "checkpoints" / f"step_{STEPS:06d}").mkdir(parents=True, exist_ok=True)
    (folder / "policy").mkdir(exist_ok=True)
    (folder / "exported.json").write_text(json.dumps({"step": STEPS}), encoding="utf-8")
    (folder / "versions.json").write_text(json.dumps({"starts": [{"commit": "abc"}]}), encoding="utf-8")


def evaluate(folder: Path, step: int, answered: str) -> None:
    for split in ("test_id", "test_ood"):
        log(folder, "evaluations", {"step": step, "series": f"{split}/sampled", "answered": answered})


def log(folder: Path, name: str, record: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    sys.exit(main())
