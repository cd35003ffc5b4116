"""Where everything of a run lies; see DESIGN.md, "A run directory"."""

from dataclasses import dataclass
from pathlib import Path

from ekd_nemo.errors import RunDirError


@dataclass(frozen=True, slots=True)
class RunDir:
    """The paths of one run directory; nothing is made or read until asked for."""

    path: Path

    @property
    def run_id(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def run_json(self) -> Path:
        """Identity: `records.identity.RunIdentity`."""
        return self.path / "run.json"

    @property
    def recipe_yaml(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def telemetry(self) -> Path:
        """Samplers' and ranks' lines."""
        return self.path / "telemetry"

    @property
    def checkpoints(self) -> Path:
        """Megatron distributed checkpoints."""
        return self.path / "checkpoints"

    @property
    def hf(self) -> Path:
        """The exported student."""
        return self.path / "hf"

    @property
    def eval(self) -> Path:
        """Harness results, `*.json`, as the harness writes them."""
        return self.path / "eval"

    @property
    def ept_json(self) -> Path:
        """The energy-per-token benchmark."""
        return self.path / "ept.json"

    @property
    def ledger(self) -> Path:
        """Derived energy table; can be rebuilt."""
        return self.path / "ledger.parquet"

    @property
    def summary_json(self) -> Path:
        """Derived figures of the run."""
        return self.path / "summary.json"

    @property
    def logs(self) -> Path:
        """Console logs, TensorBoard, `train.jsonl`."""
        return self.path / "logs"

    @property
    def train_log(self) -> Path:
        """One JSON object per training step and validation."""
        return self.logs / "train.jsonl"

    def power(self, node: str) -> Path:
        """The sampler's lines of one node."""
        return self.telemetry / f"power-{node}.jsonl"

    def marks(self, rank: int) -> Path:
        """The phase and step marks of one rank."""
        return self.telemetry / f"marks-{rank}.jsonl"

    def clocks(self, attempt: int) -> Path:
        """How far the clocks of an attempt's nodes lay apart."""
        return self.telemetry / f"clocks-{attempt}.json"

    def joint_clocks(self, attempt: int) -> Path:
        """The same of both sides of a split run together."""
        return self.telemetry / f"clocks-{attempt}-joint.json"

    def clock_files(self) -> list[Path]:
        """Those of all attempts on several nodes, sorted by name."""
        return sorted(self.telemetry.glob("clocks-*.json"))

    def power_files(self) -> list[Path]:
        """All samplers' files, sorted by name."""
        return sorted(self.telemetry.glob("power-*.jsonl"))

    def segment_files(self) -> list[Path]:
        """Samplers' files that were packed into Parquet segments, sorted by name."""
        return sorted(self.telemetry.glob("power-*.parquet"))

    def marks_files(self) -> list[Path]:
        """All ranks' marks, sorted by name."""
        return sorted(self.telemetry.glob("marks-*.jsonl"))

    def eval_files(self) -> list[Path]:
        """All harness results, sorted by name."""
        return sorted(self.eval.glob("*.json"))

    def require(self) -> "RunDir":
        """This run, if it is one.

        Raises: RunDirError unless the folder exists and holds a run.json.
        """
        if not self.path.is_dir():
            raise RunDirError(f"{self.path}: no such run directory")
        if not self.run_json.is_file():
            raise RunDirError(f"{self.path}: not a run directory: it has no run.json")
        return self


def find_runs(folder: Path) -> list[RunDir]:
    """The run itself if `folder` is one, else the runs directly in it, sorted by name.

    Raises: RunDirError if there is none.
    """
    if (folder / "run.json").is_file():
        return [RunDir(folder)]
    if not folder.is_dir():
        raise RunDirError(
            f"{folder}: no such directory; expected a run directory or a folder of them"
        )
    runs = [RunDir(path.parent) for path in sorted(folder.glob("*/run.json"))]
    if not runs:
        raise RunDirError(f"{folder}: holds no run: neither run.json nor */run.json")
    return runs
