"""Which Python runs a worker, and where that one imports from.

An engine whose dependencies cannot live beside ours has an environment of its own. A worker then runs in its
Python, which imports from there; of ours it imports this package and the plug-in's, and nothing else.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import megatron_empg
from megatron_empg.environments.registry import plugin

# The worker imports from where its parent does, whatever the parent's path was made of.
_IMPORT_AS_THE_PARENT = """
import json, sys
sys.path[:] = json.loads(sys.argv[3])
"""
# Two packages are found by their files: a folder on the path would bring all that is installed in it.
_IMPORT_TWO_PACKAGES = """
import json, sys
from importlib import util

class FilesOfTheParent:
    def __init__(self, files):
        self.files = files
    def find_spec(self, name, path=None, target=None):
        return util.spec_from_file_location(name, self.files[name]) if name in self.files else None

sys.meta_path.insert(0, FilesOfTheParent(json.loads(sys.argv[3])))
"""
# No folder that the program's user has put in front: not the present one, not that of the user's own packages.
_FLAGS_OF_ANOTHER = ("-P", "-s")
_VARIABLES_OF_OURS = frozenset({"PYTHONPATH", "PYTHONHOME"})


@dataclass(frozen=True)
class Interpreter:
    """`program`: its first words. `imports`: source that makes imports work, with `places` for its third argument.

    `environment` is the name by which the worker finds the plug-in.
    """

    program: tuple[str, ...]
    imports: str
    places: str
    environment: str
    dropped: frozenset[str] = frozenset()

    def variables(self, given: Mapping[str, str]) -> dict[str, str]:
        """Those of `given` that the interpreter may have."""
        return {name: value for name, value in given.items() if name not in self.dropped}


def interpreter_of(environment: str, python: Path | None) -> Interpreter:
    """The Python at `python`, or this one. Raises ValueError where a worker could not run in it."""
    if python is None:
        return Interpreter((sys.executable,), _IMPORT_AS_THE_PARENT, json.dumps(sys.path), environment)
    if not os.access(python, os.X_OK) or python.is_dir():
        raise ValueError(
            f"environment {environment!r}: its Python {str(python)!r} is not a program that can be run; name the "
            "interpreter itself, such as .../bin/python"
        )
    kind = plugin(environment)
    files = {"megatron_empg": str(megatron_empg.__file__)}
    top = kind.__module__.partition(".")[0]
    found = getattr(sys.modules.get(top), "__file__", None)
    if found is None:
        raise ValueError(
            f"environment {environment!r}: the package {top!r} has no file, by which another Python could import "
            "it; give it an __init__.py"
        )
    return Interpreter(
        (str(python), *_FLAGS_OF_ANOTHER),
        _IMPORT_TWO_PACKAGES,
        json.dumps(files | {top: found}),
        f"{kind.__module__}:{kind.__qualname__}",
        _VARIABLES_OF_OURS,
    )
