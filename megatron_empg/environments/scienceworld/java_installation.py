"""What ScienceWorld needs of a machine: Java and two Python packages. They are looked for without loading them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from zipfile import is_zipfile

from megatron_empg.environments.scienceworld.errors import EngineUnavailable

OLDEST_JAVA = 8
VERSION = "1.2.3"
"""Of the package `scienceworld`: the tasks and their variations are this one's."""
_SECONDS_FOR_VERSION = 60.0
_HOW_JAVA = (
    "install one, for instance `apt-get install openjdk-17-jre-headless`, or point JAVA_HOME at one that is there"
)
_HOW_PACKAGE = "install it with `pip install 'megatron_empg[scienceworld]'`"


@dataclass(frozen=True)
class JavaInstallation:
    """The program `java`, and what it is to load."""

    java: str
    jar: Path


def installed() -> JavaInstallation:
    """What is needed, found. Raises EngineUnavailable, which says what is missing and how to get it."""
    jar = engine_jar()
    return JavaInstallation(usable_java(), jar)


def usable_java() -> str:
    """The `java` of JAVA_HOME, or else of PATH. Raises EngineUnavailable where there is none or it is too old."""
    program = _java_program()
    if program is None:
        raise EngineUnavailable(
            f"scienceworld needs Java {OLDEST_JAVA} or newer for its engine, and there is no `java` in JAVA_HOME "
            f"or PATH: {_HOW_JAVA}"
        )
    found = java_version(program)
    if major_version(found) < OLDEST_JAVA:
        raise EngineUnavailable(
            f"scienceworld needs Java {OLDEST_JAVA} or newer for its engine, and {program} is of version {found}: "
            f"{_HOW_JAVA}"
        )
    return program


def java_version(program: str) -> str:
    """What ``java -version`` calls itself, such as "17.0.15". Raises EngineUnavailable where it does not run."""
    try:
        said = subprocess.run(
            [program, "-version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS_FOR_VERSION,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineUnavailable(f"scienceworld: {program} -version failed ({error}): {_HOW_JAVA}") from None
    text = (said.stderr + said.stdout).decode("utf-8", "replace")
    found = re.search(r'version "([^"]+)"', text)
    if found is None:
        raise EngineUnavailable(f"scienceworld: {program} -version names no version, but says {text!r:.200}")
    return found[1]


def major_version(name: str) -> int:
    """The major number of a version as Java names it: 8 for "1.8.0_402", 17 for "17.0.15"."""
    first, *others = re.findall(r"\d+", name) or ["0"]
    if first == "1" and others:
        return int(others[0])
    return int(first)


def engine_jar() -> Path:
    """The engine, in the installed package. Raises EngineUnavailable where one of the packages is missing."""
    for package in ("scienceworld", "py4j"):
        if find_spec(package) is None:
            raise EngineUnavailable(f"scienceworld needs the Python package {package}: {_HOW_PACKAGE}")
    try:
        found = version("scienceworld")
    except PackageNotFoundError:
        found = "unknown"
    if found != VERSION:
        raise EngineUnavailable(
            f"the Python package scienceworld is of version {found}, and the tasks known here are those of "
            f"{VERSION}: `pip install scienceworld=={VERSION}`"
        )
    spec = find_spec("scienceworld")
    assert spec is not None, "it was looked for above"
    jar = Path(next(iter(spec.submodule_search_locations or ()))) / "scienceworld.jar"
    if not jar.is_file():
        raise EngineUnavailable(f"the Python package scienceworld has no engine at {jar}: {_HOW_PACKAGE}")
    if not is_zipfile(jar):
        raise EngineUnavailable(
            f"ScienceWorld's engine {jar} is damaged (its {jar.stat().st_size} bytes are not a zip file): "
            f"`pip install --force-reinstall scienceworld=={VERSION}`"
        )
    return jar


def _java_program() -> str | None:
    home = os.environ.get("JAVA_HOME")
    if home:
        found = shutil.which(str(Path(home) / "bin" / "java"))
        if found is not None:
            return found
    return shutil.which("java")
