"""Every outcome as soon as there is one: lines of JSON that an interrupted evaluation goes on from.

The first line is the identity: all that decides how one episode goes, but for the policy. A policy has a line of
its own, and each outcome names its policy. How many questions, samples and policies are asked may grow.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Self, get_args

from megatron_empg.common.jsonl import read_lines
from megatron_empg.common.locks import hold_where_possible
from megatron_empg.evaluate.errors import EvaluationError
from megatron_empg.evaluate.questions import Decoding, End, EvaluationPass, SampleOutcome, fingerprint_task

FORMAT, VERSION = "megatron_empg outcomes", 1
TRIES = 2
"""An episode that ended in an error is played once more by the next start, with the same seeds."""
_NONE = type(None)
_ALLOWED: dict[str, tuple[type | str, ...]] = {
    "id": (str,),
    "split": (str,),
    "decoding": get_args(Decoding),
    "kind": (str,),
    "hops": (int, _NONE),
    "sample": (int,),
    "success": (bool,),
    "end": get_args(End),
    "reward": (float, int),
    "turns": (int,),
    "tokens": (int,),
    "error": (str, _NONE),
    "question": (str,),
}
"""What each field of an outcome may hold in a file: types, or certain words."""

Key = tuple[str, str, Decoding, str, int]
"""Policy, split, decoding, question, sample."""


class OutcomeRecord:
    """The outcomes of an evaluation in a file. Use as a context manager; the file is locked meanwhile."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))
        self.starts: list[dict[str, Any]] = []
        """Versions and time of each start."""
        self._policies: dict[str, str] = {}
        self._outcomes: dict[Key, SampleOutcome] = {}
        self._tries: dict[Key, int] = {}
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        """Read what is there. Raises EvaluationError when it is another evaluation's, or somebody writes it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab")
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        return len(self._outcomes)

    def note_start(self, versions: Mapping[str, Any]) -> None:
        """Say with what the outcomes that follow were made."""
        self.starts.append(dict(versions))
        self._append({"start": dict(versions)})

    def note_policy(self, folder: str, key: str) -> None:
        """Say whose outcomes follow. Raises EvaluationError when the folder held another policy before."""
        before = self._policies.get(folder)
        if before is not None and before != key:
            raise EvaluationError(
                f"{self.path} has outcomes of another policy in {folder} (fingerprint {before}, now {key}): it "
                "was trained further or replaced. Give another --json, or the folder as it was"
            )
        if before is None:
            self._policies[folder] = key
            self._append({"policy": key, "folder": folder})

    def add(self, policy: str, outcome: SampleOutcome) -> None:
        """Keep an outcome; the operating system has it, whatever becomes of this process."""
        self._keep(policy, outcome)
        self._append({"policy": policy, **asdict(outcome)})

    def missing(self, policy: str, asked: EvaluationPass) -> list[list[int]]:
        """The samples of each task that have no outcome yet, or an error that is to be tried again."""
        found = []
        for task in asked.tasks:
            keys = [(policy, asked.split, asked.decoding, task.id, number) for number in range(asked.samples)]
            found.append([key[-1] for key in keys if self._unanswered(key)])
        return found

    def outcomes(self, policy: str, asked: EvaluationPass) -> list[SampleOutcome]:
        """Those of a pass as far as they are there, in the order asked.

        Raises EvaluationError when a question said something else at the time.
        """
        found = []
        for task in asked.tasks:
            question = fingerprint_task(task)
            for number in range(asked.samples):
                outcome = self._outcomes.get((policy, asked.split, asked.decoding, task.id, number))
                if outcome is None:
                    continue
                if outcome.question != question:
                    raise EvaluationError(
                        f"{self.path}: question {task.id!r} of {asked.split} reads otherwise than when it was "
                        "asked (prompt, answer or tools); give another --json"
                    )
                found.append(outcome)
        return found

    def _unanswered(self, key: Key) -> bool:
        outcome = self._outcomes.get(key)
        return outcome is None or (outcome.end == "error" and self._tries[key] < TRIES)

    def _lock(self) -> None:
        assert self._file is not None
        busy = EvaluationError(f"another evaluation writes {self.path}; wait for it, or give another --json")
        hold_where_possible(self._file, busy)

    def _read(self) -> None:
        assert self._file is not None
        lines = read_lines(self.path)
        if not lines:
            self._file.truncate(0)
            self._append({"format": FORMAT, "version": VERSION, "identity": self.identity})
            return
        self._check_first(lines[0])
        if not self.path.read_bytes().endswith(b"\n"):
            self._file.write(b"\n")  # after a line that a kill has torn
        for line in lines[1:]:
            self._take(line)

    def _check_first(self, line: Mapping[str, Any]) -> None:
        if line.get("format") != FORMAT or line.get("version") != VERSION:
            raise EvaluationError(
                f"{self.path} is not a file of outcomes of this release ({FORMAT!r}, version {VERSION}); give "
                "another --json"
            )
        faults = list(differences(line.get("identity"), self.identity))
        if faults:
            raise EvaluationError(
                f"{self.path} holds another evaluation:\n"
                + "\n".join(f"  - {fault}" for fault in faults)
                + "\nGive another --json, or set these back"
            )

    def _take(self, line: dict[str, Any]) -> None:
        if "start" in line:
            self.starts.append(line["start"])
            return
        policy = str(line.pop("policy", ""))
        if "folder" in line:
            self._policies[str(line["folder"])] = policy
            return
        for name, allowed in _ALLOWED.items():
            value = line.get(name)
            # Exact types: True is an int to Python.
            if type(value) not in allowed and not (isinstance(value, str) and value in allowed):
                raise EvaluationError(
                    f"{self.path}: an outcome has {name} {value!r}, which cannot be; remove the line"
                )
        self._keep(policy, SampleOutcome(**{name: line[name] for name in _ALLOWED}))

    def _keep(self, policy: str, outcome: SampleOutcome) -> None:
        if not math.isfinite(outcome.reward):
            raise EvaluationError(
                f"{self.path}: the reward of question {outcome.id!r} is {outcome.reward}, no number"
            )
        key = (policy, outcome.split, outcome.decoding, outcome.id, outcome.sample)
        self._outcomes[key] = outcome
        self._tries[key] = self._tries.get(key, 0) + 1

    def _append(self, line: Mapping[str, Any]) -> None:
        assert self._file is not None
        text = json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"
        self._file.write(text.encode("utf-8", errors="backslashreplace"))
        self._file.flush()


def differences(recorded: Any, ours: Mapping[str, Any]) -> Iterable[str]:
    """What makes two evaluations different ones: a line for each key, with the old and the new value."""
    if not isinstance(recorded, Mapping):
        yield "its first line says of what evaluation it is in a way that cannot be read"
        return
    for key in dict.fromkeys([*recorded, *ours]):
        old, new = recorded.get(key), ours.get(key)
        if old != new:
            yield f"{key} was {_said(old)}, is {_said(new)}"


def _said(value: Any) -> str:
    if value is None:
        return "not given"
    return json.dumps(value, ensure_ascii=False)
