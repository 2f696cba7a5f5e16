"""Is every node fit for the run? `empg preflight` by another name; see docs/preflight.md.

python tools/preflight.py recipes/NAME.yaml                                     # this machine
srun --ntasks-per-node 1 python tools/preflight.py recipes/NAME.yaml --gpus 8   # every node of the job
"""

import sys

from megatron_empg.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "preflight")
    main()
