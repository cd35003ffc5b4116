"""`python -m ekd_nemo.worker data build`: what the light command `ekd data build` starts."""

import argparse
import signal
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from ekd_nemo.config.data import DataBuild
from ekd_nemo.data.build import build
from ekd_nemo.errors import ConfigError


def main(argv: Sequence[str]) -> None:
    """Build shards and say what they hold.

    Args:
        argv: `build --settings JSON --out FOLDER`; JSON as `DataBuild.model_dump_json` writes it.

    Raises:
        ConfigError: for settings that are not those of a build.
        DataError: see `build`.
    """
    parser = argparse.ArgumentParser(prog="python -m ekd_nemo.worker data")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("build")
    verb.add_argument("--settings", required=True)
    verb.add_argument("--out", required=True, type=Path)
    given = parser.parse_args(argv)
    started_s = time.monotonic()
    with _ending_on_signals():
        manifest = build(_settings(given.settings), given.out)
    console = Console(highlight=False, soft_wrap=True)
    for line in summary(manifest):
        console.print(line, markup=False)
    console.print(f"{given.out}: done in {time.monotonic() - started_s:.1f} s", markup=False)


def summary(manifest: dict[str, Any]) -> list[str]:
    """One line a split: samples, documents, tokens, targets and fill."""
    length = manifest["sequence_length"]
    return [
        f"{name}: {split['samples']:,} samples of {length} tokens from {split['documents']:,} "
        f"documents ({split['documents_cut']:,} cut), {split['tokens']:,} tokens, "
        f"{split['loss_tokens']:,} targets, {100 * split['fill']:.1f} % full"
        for name, split in manifest["splits"].items()
    ]


@contextmanager
def _ending_on_signals() -> Generator[None]:
    """Let SIGTERM and Ctrl-C end the process by way of every clean-up, with the usual exit codes."""

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _settings(text: str) -> DataBuild:
    try:
        return DataBuild.model_validate_json(text)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        key = ".".join(map(str, detail["loc"])) or "--settings"
        raise ConfigError(f"data build: {key}: {detail['msg']}") from error
