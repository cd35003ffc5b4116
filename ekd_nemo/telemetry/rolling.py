"""Rolls a sampler's growing file: the full part is set aside and packed into a Parquet segment.

Packing is a niced process of its own, `python -m ekd_nemo.telemetry.rolling PART...`, so that it
costs the sampler nothing. Until it is done the part stays as JSON lines; readers count samples that
are in both only once, so a crash in between does no harm.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

NICENESS: Final = 19
PACK_TIMEOUT_S: Final = 10.0
SUFFIX: Final = ".parquet"


def parts_of(path: Path) -> dict[int, list[Path]]:
    """The parts of a growing file that were set aside, by number: JSON lines, segment or both."""
    pattern = re.compile(re.escape(path.stem) + r"\.(\d+)\.(?:jsonl|parquet)")
    parts: dict[int, list[Path]] = {}
    for file in sorted(path.parent.glob(f"{path.stem}.*")):
        match = pattern.fullmatch(file.name)
        if match:
            parts.setdefault(int(match[1]), []).append(file)
    return parts


def next_part(path: Path) -> Path:
    """Where the next part of a growing file goes: `power-n.jsonl` -> `power-n.3.jsonl`."""
    return path.with_name(f"{path.stem}.{max(parts_of(path), default=0) + 1}.jsonl")


def pack_part(part: Path) -> Path:
    """Pack one part and remove its JSON lines; returns the segment."""
    from ekd_nemo.records.segments import pack  # pyarrow, which no sampler should carry

    segment = part.with_suffix(SUFFIX)
    pack(part, segment)
    part.unlink()
    return segment


class Packer:
    """Packs the parts of one growing file, one process at a time.

    Args:
        path: the growing file.
    """

    def __init__(self, path: Path) -> None:
        """Nothing is started yet."""
        self._path = path
        self._process: subprocess.Popen[bytes] | None = None
        self.failed = 0

    def poke(self) -> None:
        """Start packing what is left to pack, unless that is going on; a failed part stays as it is."""
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return
            self.failed += code != 0
            self._process = None
        parts = [file for files in parts_of(self._path).values() for file in files]
        waiting = [str(file) for file in parts if file.suffix == ".jsonl"]
        if waiting and not self.failed:
            command = [sys.executable, "-P", "-m", "ekd_nemo.telemetry.rolling", *waiting]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def finish(self) -> None:
        """Wait for what is being packed; what takes too long stays as JSON lines."""
        if self._process is None:
            return
        try:
            self._process.wait(PACK_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            for half_made in self._path.parent.glob(f".{self._path.stem}.*.tmp"):
                half_made.unlink()


def main(argv: Sequence[str]) -> int:
    """Pack the parts named on the command line."""
    os.nice(NICENESS)
    for name in argv:
        pack_part(Path(name))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
