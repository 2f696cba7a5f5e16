"""Convert checkpoints between Hugging Face and Megatron: the same as `empg convert`.

python tools/convert_checkpoint.py to-megatron|to-hf SRC DST [--tensor-parallel N --pipeline-parallel M]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from megatron_empg.cli import convert, main

if __name__ == "__main__":
    main(convert.app)
