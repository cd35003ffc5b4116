"""The folder of evaluation results: one harness file per role and asked task, whole or not at all.

`<harness>.<role>.<task>.json` is byte for byte what the harness wrote; `settings/` says what was asked of which
weights, `samples/` holds the per-item logs.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from pydantic import ValidationError

from ekd_nemo.errors import DataError, RunError
from ekd_nemo.evals.harness_json import HarnessResult
from ekd_nemo.evals.harnesses import LM, Harness
from ekd_nemo.evals.sidecar import Sidecar
from ekd_nemo.records.atomic import write_bytes, write_text


@dataclass(frozen=True)
class Stored:
    """One result with its settings."""

    results: Path
    settings: Sidecar
    harness: Harness = LM

    @property
    def role(self) -> str:
        """Of the model: `student`, `teacher`, `base`, or `model` where it has none."""
        return self.settings.role

    def read(self) -> HarnessResult:
        """What the harness's file says.

        Raises:
            DataError: if it is not one.
        """
        return self.harness.read(self.results, self.settings)


@dataclass(frozen=True)
class EvalDir:
    """A folder of results of one harness; made when the first is placed."""

    path: Path
    harness: Harness = LM

    def results(self, role: str, task: str) -> Path:
        """The harness's own file."""
        return self.path / f"{self.harness.prefix}.{role}.{task}.json"

    def settings(self, role: str, task: str) -> Path:
        """What was asked, and the hash of the harness's file."""
        return self.path / "settings" / f"{self.harness.prefix}.{role}.{task}.json"

    def samples(self, role: str, task: str) -> list[Path]:
        """The per-item logs of a result, one file a subtask."""
        return sorted((self.path / "samples").glob(f"{self.harness.prefix}.{role}.{task}.*.jsonl"))

    def stored(self) -> list[Stored]:
        """Every result, sorted by file name.

        Raises:
            DataError: if one has no settings, or those of another result.
        """
        return [
            self._read(path) for path in sorted(self.path.glob(f"{self.harness.prefix}.*.json"))
        ]

    def _read(self, results: Path) -> Stored:
        path = self.path / "settings" / results.name
        try:
            settings = Sidecar.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{path}: not the settings of {results.name}: {reason}") from error
        if _sha256(results.read_bytes()) != settings.results_sha256:
            raise DataError(f"{results}: not the result that {path} describes; evaluate again")
        return Stored(results, settings, self.harness)

    def find(self, role: str, task: str, weights_sha256: str, request_hash: str) -> Stored | None:
        """The stored result of these weights under these settings; None if there is none."""
        path = self.results(role, task)
        if not path.is_file() or not self.settings(role, task).is_file():
            return None
        try:
            found = self._read(path)
        except DataError:
            return None  # torn between two renames: not a result to reuse
        stored = (found.settings.model.weights_sha256, found.settings.request_hash)
        return found if stored == (weights_sha256, request_hash) else None

    def place(self, scratch: Path, settings: Sidecar) -> Stored:
        """Take over what the harness left in `scratch`: samples, then settings, then the results file.

        Args:
            scratch: the harness's output folder.
            settings: of this result; its hash of the results file is filled in.

        Raises:
            RunError: if the harness left no whole result; it only warns when it cannot write.
        """
        task = settings.task
        found = sorted(scratch.glob("*/results_*.json"))
        if len(found) != 1:
            raise RunError(f"{task}: {settings.harness} left no results{_space(scratch)}")
        samples = _item_logs(scratch)
        counted = settings.model_copy(
            update={"num_items": {name: _count(path) for name, path in samples.items()}}
        )
        try:
            result = self.harness.read(found[0], counted)
        except DataError as error:
            raise RunError(
                f"{task}: {settings.harness} left a torn results file{_space(scratch)}: {error}"
            ) from error
        for subtask, count in result.section("n-samples").items():
            logged = counted.num_items.get(subtask, 0)
            if logged < count["effective"] or logged == 0:
                raise RunError(
                    f"{task}: {settings.harness} logged {logged} of {count['effective']} items of {subtask}"
                    f"{_space(scratch)}"
                )
        return self._store(found[0].read_bytes(), samples, counted)

    def copy(self, stored: Stored, role: str, origin: "EvalDir") -> Stored:
        """Take over a result of another folder under another role."""
        task = stored.settings.task
        head = f"{self.harness.prefix}.{stored.role}.{task}."
        logs = origin.samples(stored.role, task)
        named = {path.name.removeprefix(head).removesuffix(".jsonl"): path for path in logs}
        update = {"role": role, "copied_from": str(stored.results)}
        return self._store(
            stored.results.read_bytes(), named, stored.settings.model_copy(update=update)
        )

    def _store(self, results: bytes, samples: Mapping[str, Path], settings: Sidecar) -> Stored:
        """Write everything, each file by rename, the results last; logs of an earlier result go."""
        role, task = settings.role, settings.task
        for folder in ("settings", "samples"):
            (self.path / folder).mkdir(parents=True, exist_ok=True)
        before = set(self.samples(role, task))
        written: set[Path] = set()
        for subtask, path in samples.items():
            log = self.path / "samples" / f"{self.harness.prefix}.{role}.{task}.{subtask}.jsonl"
            write_bytes(log, path.read_bytes())
            written.add(log)
        sealed = settings.model_copy(update={"results_sha256": _sha256(results)})
        write_text(self.settings(role, task), sealed.model_dump_json(indent=2) + "\n")
        write_bytes(self.results(role, task), results)
        for log in before - written:
            log.unlink()
        return Stored(self.results(role, task), sealed, self.harness)


def _item_logs(scratch: Path) -> dict[str, Path]:
    """The per-item logs by subtask; their names end in the harness's date."""
    logs = sorted(scratch.glob("*/samples_*_[0-9][0-9][0-9][0-9]-*.jsonl"))
    return {path.name.removeprefix("samples_").rpartition("_")[0]: path for path in logs}


def _count(log: Path) -> int:
    """Whole lines."""
    return sum(line.endswith(b"}") for line in log.read_bytes().splitlines())


def _space(folder: Path) -> str:
    return (
        f" ({shutil.disk_usage(folder).free // 2**20} MiB free on its disk)"
        if folder.is_dir()
        else ""
    )


def _sha256(data: bytes) -> str:
    return sha256(data).hexdigest()
