"""`ekd convert`: between Hugging Face folders and Megatron checkpoints; a worker does the work."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ekd_nemo.cli.common import run_worker
from ekd_nemo.errors import CheckpointError

app = typer.Typer(
    name="convert",
    help="Import and export Hugging Face models.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class Dtype(StrEnum):
    """What an exported folder's weights may be stored in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="Hugging Face folder or hub id.")],
    out: Annotated[Path, typer.Argument(help="NeMo checkpoint to make; must not exist.")],
) -> None:
    """Write a Llama or Qwen2 model as a NeMo checkpoint (Megatron's distributed format)."""
    _require_absent(out)
    run_worker(["convert", "import", source, str(out)])


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Megatron distributed checkpoint.")],
    out: Annotated[Path, typer.Argument(help="Hugging Face folder to make; must not exist.")],
    like: Annotated[
        str | None,
        typer.Option(help="Folder or hub id with config and tokenizer of this decoder."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub id of the tokenizer; default: --like.")
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Store in; default: as trained.")] = None,
    adapter: Annotated[
        bool,
        typer.Option("--adapter", help="The low-rank adapters alone, for peft; default: merged."),
    ] = False,
) -> None:
    """Write a checkpoint of any TP and PP as a Hugging Face folder, without a GPU.

    Without --like the checkpoint must say itself what it is (context/hf). With it the depth may
    differ: that of the checkpoint counts.
    """
    _require_absent(out)
    if not checkpoint.is_dir():
        raise CheckpointError(
            f"{checkpoint}: no such folder; a Megatron distributed checkpoint is accepted"
        )
    argv = ["convert", "export", str(checkpoint), str(out)]
    argv += [f"--like={like}"] if like is not None else []
    argv += [f"--tokenizer={tokenizer}"] if tokenizer is not None else []
    argv += ["--dtype", dtype.value] if dtype is not None else []
    argv += ["--adapter"] if adapter else []
    run_worker(argv)


def _require_absent(out: Path) -> None:
    if out.exists():
        raise CheckpointError(f"{out}: exists, nothing is overwritten; remove it or choose another")
