"""What a run says of itself while it trains: `logs/train.jsonl`, the console, and loggers."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ekd_nemo.config.recipe import Recipe
from ekd_nemo.models.pace import StepPace
from ekd_nemo.models.validation import Held
from ekd_nemo.records.jsonl import JsonlStore, ReadReport, read_objects

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class StepRecord:
    """A finished step.

    Attributes:
        step: from 1.
        terms: means over the global batch's valid tokens, in nats, not weighted.
        loss: the weighted total.
        lr: used in this step.
        grad_norm: before clipping; None if the optimiser gave none.
        tokens: non-padding tokens of the global batch.
        tokens_valid: of those, the ones that carry loss.
        duration_s: of the step on this rank, teacher included, validation and checkpoint not.
        pace: rates of the step; None on ranks that keep silent.
    """

    step: int
    terms: Mapping[str, float]
    loss: float
    lr: float
    grad_norm: float | None
    tokens: int
    tokens_valid: int
    duration_s: float
    pace: StepPace | None = None


class MetricLogger(Protocol):
    """The part of Lightning's loggers that is used here."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Take scalars."""
        ...

    def save(self) -> None:
        """Flush."""
        ...


class TrainingLog:
    """Writes on rank 0; on other ranks every call does nothing."""

    def __init__(
        self, path: Path, recipe: Recipe, attempt: int, *, speaks: bool, loggers: Sequence[Any] = ()
    ) -> None:
        """Append to `path`; say how far the run is on the console."""
        self._speaks, self._attempt, self._recipe = speaks, attempt, recipe
        self._loggers: Sequence[MetricLogger] = loggers
        if speaks:
            self._tokens_total = _tokens_so_far(path)
            self._store = JsonlStore(path)
            self._console = StepConsole(recipe)

    @property
    def speaks(self) -> bool:
        """Whether anything is written here."""
        return self._speaks

    def begin(self, step: int) -> None:
        """Go on after `step` steps; what earlier attempts did beyond is done again."""
        if self._speaks:
            self._tokens_total = {s: n for s, n in self._tokens_total.items() if s <= step}
            self._console.begin(step)

    def step(self, record: StepRecord) -> None:
        """Write a step's line."""
        if not self._speaks:
            return
        self._tokens_total[record.step] = record.tokens
        values: dict[str, Any] = {
            "step": record.step,
            "loss": record.loss,
            **record.terms,
            "lr": record.lr,
            "grad_norm": record.grad_norm,
            "tokens": record.tokens,
            "tokens_valid": record.tokens_valid,
            "tokens_total": sum(self._tokens_total.values()),
            "duration_s": record.duration_s,
            **({} if record.pace is None else asdict(record.pace)),
        }
        self._write(values)
        if record.step % self._recipe.train.log_interval == 0:
            self._console.step(record)
            self._to_loggers("train", values)

    def validation(self, step: int, held: Held) -> None:
        """Write a validation's line."""
        if not self._speaks:
            return
        values: dict[str, Any] = {
            "step": step,
            "val_ce": held.ce,
            "val_kl_to_teacher": held.kl_to_teacher,
            "val_tokens": held.tokens,
        }
        self._write(values)
        self._console.validation(step, held)
        self._to_loggers("validation", values)

    def say(self, text: str) -> None:
        """One line on the console."""
        if self._speaks:
            self._console.say(text)

    def close(self) -> None:
        """Flush and close."""
        if self._speaks:
            self._console.close()
            self._store.close()
            for logger in self._loggers:
                logger.save()

    def _write(self, values: Mapping[str, Any]) -> None:
        line = {"schema_version": SCHEMA_VERSION, "attempt": self._attempt, **values}
        self._store.append_text(json.dumps(line) + "\n")

    def _to_loggers(self, prefix: str, values: Mapping[str, Any]) -> None:
        numbers = {
            f"{prefix}/{name}": float(value)
            for name, value in values.items()
            if name != "step" and value is not None
        }
        for logger in self._loggers:
            logger.log_metrics(numbers, step=values["step"])


def _tokens_so_far(path: Path) -> dict[int, int]:
    """Tokens of each step that an earlier attempt has logged; later attempts count."""
    if not path.is_file():
        return {}
    lines = list(read_objects(path, ReadReport()))
    lines.sort(key=lambda line: line.get("attempt", 0))
    return {line["step"]: line["tokens"] for line in lines if "tokens" in line}


class StepConsole:
    """A progress bar on a terminal, plain lines elsewhere; both on stdout."""

    def __init__(self, recipe: Recipe) -> None:
        """Nothing is shown before `begin`."""
        self._steps = recipe.train.steps
        self._console = Console(highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: Any = None
        if sys.stdout.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[now]}"),
                console=self._console,
            )

    def begin(self, step: int) -> None:
        """Begin after `step` steps."""
        if self._bar is not None:
            self._task = self._bar.add_task("train", total=self._steps, completed=step, now="")
            self._bar.start()

    def step(self, record: StepRecord) -> None:
        """Show a step."""
        terms = "  ".join(f"{name} {value:.4f}" for name, value in record.terms.items())
        text = (
            f"loss {record.loss:.4f}  {terms}  lr {record.lr:.2e}  {record.duration_s:.2f} s"
            f"{pace_text(record.pace)}"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=record.step, now=text)
        else:
            self.say(f"step {record.step}/{self._steps}  {text}  {record.tokens} tokens")

    def validation(self, step: int, held: Held) -> None:
        """Show a validation."""
        if held.ce is None:
            self.say(f"validation after step {step}: n/a, no held-out token carries loss")
            return
        kl = "n/a (no teacher)" if held.kl_to_teacher is None else f"{held.kl_to_teacher:.4f} nats"
        self.say(
            f"validation after step {step}: cross-entropy {held.ce:.4f} nats, "
            f"KL to the teacher {kl}, over {held.tokens} tokens"
        )

    def say(self, text: str) -> None:
        """One line."""
        self._console.print(text, markup=False)
        sys.stdout.flush()

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


def pace_text(pace: StepPace | None) -> str:
    """Rates as the console shows them; what is not known is left out."""
    if pace is None:
        return ""
    parts = [f"{pace.tokens_per_s:.0f} tokens/s", f"{pace.flops / 1e12:.3g} TFLOP"]
    if pace.mfu is not None:
        parts.append(f"MFU {pace.mfu:.1%}")
    if pace.energy_per_token_j is not None:
        parts.append(f"{pace.energy_per_token_j:.3g} J/token")
    return "  " + "  ".join(parts)
