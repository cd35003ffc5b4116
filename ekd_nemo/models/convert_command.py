"""`python -m ekd_nemo.worker convert import|export`: what `ekd convert` starts."""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ekd_nemo.models.convert import export_checkpoint, import_checkpoint
from ekd_nemo.models.convert_folder import DTYPES

# They report every group and setting at level INFO, and hints that do not apply here as warnings.
NOISY = ("nemo_logger", "lightning.pytorch", "pytorch_lightning")


def main(argv: Sequence[str]) -> None:
    """Import or export one model.

    Args:
        argv: `import SOURCE OUT` or `export CHECKPOINT OUT [--like FOLDER]
            [--tokenizer FOLDER] [--dtype DTYPE] [--adapter]`.

    Raises:
        CheckpointError: see `import_checkpoint` and `export_checkpoint`.
    """
    parser = argparse.ArgumentParser(prog="python -m ekd_nemo.worker convert")
    verbs = parser.add_subparsers(dest="verb", required=True)
    importing = verbs.add_parser("import")
    importing.add_argument("source")
    importing.add_argument("out", type=Path)
    exporting = verbs.add_parser("export")
    exporting.add_argument("checkpoint", type=Path)
    exporting.add_argument("out", type=Path)
    exporting.add_argument("--like")
    exporting.add_argument("--tokenizer")
    exporting.add_argument("--dtype", choices=sorted(DTYPES))
    exporting.add_argument("--adapter", action="store_true")
    given = parser.parse_args(argv)
    started_s = time.monotonic()
    if given.verb == "import":
        for name in NOISY:
            logging.getLogger(name).setLevel(logging.ERROR)
        import_checkpoint(given.source, given.out)
    else:
        export_checkpoint(
            given.checkpoint,
            given.out,
            like=given.like,
            tokenizer_from=given.tokenizer,
            dtype=given.dtype,
            adapter=given.adapter,
        )
    sys.stdout.write(f"{given.out}: {given.verb}ed in {time.monotonic() - started_s:.1f} s\n")
