"""Whether a process holds a single cuDNN once it has imported the named modules; part of building the image.

    python container/check_libraries.py torch transformer_engine.pytorch vllm

Torch and the image each bring one, and whoever loads a library by another path adds a second: its parts then call
those of another version.
"""

import importlib
import re
import sys
from pathlib import Path


def folders(maps: str, library: str) -> list[str]:
    """Where the parts of a library (``libcudnn.so.9``, ``libcudnn_ops.so.9``) lie, by a /proc/PID/maps."""
    pattern = rf"(/\S*)/{re.escape(library)}[a-z_]*\.so[.\d]*$"
    return sorted(set(re.findall(pattern, maps, re.MULTILINE)))


def main(modules: list[str]) -> None:
    for name in modules:
        importlib.import_module(name)
    found = folders(Path("/proc/self/maps").read_text(), "libcudnn")
    if len(found) > 1:
        raise SystemExit(
            f"error: parts of {len(found)} cuDNNs in one process, from {' and '.join(found)}: set CUDNN_HOME"
        )
    print(f"imported {', '.join(modules)}; cuDNN: {found[0] if found else 'none loaded'}")


if __name__ == "__main__":
    main(sys.argv[1:])
