#!/usr/bin/env bash
# Sourced by the sbatch files: `job train "$0" …` becomes megatron_empg/launch/job.py. That needs the standard library
# of a Python of this host alone, 3.9 or newer; the package runs by EMPG_PYTHON, in the image where there is one.
job() { # job train|suite|convert|guard WORDS…
  local pythons=(python3 "$EMPG_HOME/.venv/bin/python" python3.{9..15}) python found=''
  [ -z "${EMPG_HOST_PYTHON:-}" ] || pythons=("$EMPG_HOST_PYTHON")
  for python in "${pythons[@]}"; do
    if "$python" -S -I -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then
      found=$python
      break
    fi
  done
  if [ -z "$found" ]; then
    echo "error (configuration): none of these is a Python of 3.9 or newer, which a job needs on its batch host beside any image: ${pythons[*]}: load a module that has one, or set EMPG_HOST_PYTHON to it" >&2
    exit 10
  fi
  export EMPG_HOME
  exec "$found" -S -I -c 'import os, sys
sys.path.insert(0, os.path.abspath(os.environ["EMPG_HOME"]))
from megatron_empg.launch.job import main
main()' "$@"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then # the guard, on another node of the job
  job "$@"
fi
