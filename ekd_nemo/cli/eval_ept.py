"""What `ekd eval ept` does with its options; apart from them, so that `--help` loads none of it."""

import os
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import typer

from ekd_nemo.cli.common import require_extra, table
from ekd_nemo.config.recipe import Energy
from ekd_nemo.errors import RunError, UserError
from ekd_nemo.evals.ept import points_of, read_measured, run_ept
from ekd_nemo.evals.ept_request import EptJob, EptPoint, EptSettings
from ekd_nemo.evals.lm import Target
from ekd_nemo.evals.prompts import PromptSource, open_prompts
from ekd_nemo.evals.request import canonical_hash
from ekd_nemo.evals.target import Beside, Subject, find_subject, find_targets
from ekd_nemo.launch.plan import UUIDS_VARIABLE
from ekd_nemo.launch.sampling import sampling
from ekd_nemo.metrics.ept_entries import entry_of
from ekd_nemo.metrics.ept_table import ept_rows
from ekd_nemo.records.capture import capture_attempt
from ekd_nemo.records.ept import EptEntry, EptModel, read_ept, write_ept
from ekd_nemo.records.identity import RunIdentity, begin_attempt, read_identity
from ekd_nemo.records.rundir import RunDir

EPT_FILE: Final = "ept.json"  # beside the shared results of a model
REQUEST: Final = "request_hash"
LAST_SAMPLES_S: Final = 2.5  # of a sampler that goes on: past its next counter reading


_ACCEPTED: Final = {
    "engine": ("transformers", "vllm"),
    "dtype": ("float32", "bfloat16", "auto"),
    "device": ("cpu", "cuda", "auto"),
}
_METERS: Final = ("auto", "nvml", "rapl", "estimate")


def make_settings(**options: Any) -> EptSettings:
    """The benchmark's settings from options.

    Raises:
        UserError: for a value that is none of those accepted.
    """
    for name, accepted in _ACCEPTED.items():
        if options[name] not in accepted:
            raise UserError(f"--{name} {options[name]}: accepted are {', '.join(accepted)}")
    for name, least in (("seconds", 0.0), ("warmup_s", -1e-9)):
        if not least < options[name] < float("inf"):
            option = name.replace("_", "-")
            raise UserError(f"--{option} {options[name]}: accepted are seconds from 0 up")
    return EptSettings(**options)


@dataclass(frozen=True, kw_only=True)
class EptOptions:
    """The command's options."""

    target: Path
    teacher: Path | None
    prompts: str
    batch_sizes: str
    input_tokens: str
    new_tokens: str
    settings: EptSettings
    natural: bool
    runs: Path
    meter: str
    cpu_tdp_w: float | None
    student_only: bool
    again: bool

    def points(self) -> tuple[EptPoint, ...]:
        """The sweep.

        Raises:
            UserError: for a list that is not one of whole numbers above 0.
        """
        return points_of(
            _numbers("--batch-sizes", self.batch_sizes),
            _numbers("--input-tokens", self.input_tokens),
            _numbers("--new-tokens", self.new_tokens),
            natural=self.natural,
        )


@dataclass(frozen=True)
class Ask:
    """One model with the points that are asked of it, by the hash of each question."""

    target: Target
    points: dict[str, EptPoint]


def run_benchmark(options: EptOptions) -> None:
    """Check everything, measure what is not stored, store energies per token, print them."""
    require_extra("ekd eval ept", "train", "torch")
    points = options.points()
    if options.meter not in _METERS:
        raise UserError(f"--meter {options.meter}: accepted are {', '.join(_METERS)}")
    prompts = open_prompts(options.prompts)
    subject = find_subject(options.target, typer.echo)
    beside = Beside(teacher=options.teacher, student_only=options.student_only)
    found = find_targets(subject, beside, eval_dir=subject.eval_dir(None), tell=typer.echo)
    # The base has the student's architecture: its energy per token is the student's.
    targets = [target for target in found if target.role != "base"]
    asks = [
        Ask(target, _questions(target, points, options.settings, prompts)) for target in targets
    ]
    run = _run_of(subject, targets[0], options)
    energy = _energy(subject, options)
    try:
        _measure(run, asks, options, prompts, energy)
    except OSError as error:
        raise RunError(f"results cannot be stored: {error}") from error
    typer.echo(table(ept_rows(read_ept(run.ept_json).entries)))
    typer.echo(f"results: {run.ept_json}")


def _measure(
    run: RunDir, asks: Sequence[Ask], options: EptOptions, prompts: PromptSource, energy: Energy
) -> None:
    """Measure under a sampler, then account; what was measured before a failure is accounted as well."""
    todo = list(asks) if options.again else [_left(run, ask) for ask in asks]
    before = len(read_measured(run))
    try:
        if any(ask.points for ask in todo):
            with _sampled(run, energy) as uuids:
                if not options.again:
                    _take_shared(run, todo, set(uuids))
                    todo = [_left(run, ask) for ask in todo]
                _tell_stored(asks, todo)
                _run(run, todo, options.settings, prompts, uuids)
        else:
            _tell_stored(asks, todo)
    finally:
        _account(run, todo, before, options.settings, prompts)


def _run(
    run: RunDir,
    asks: Sequence[Ask],
    settings: EptSettings,
    prompts: PromptSource,
    uuids: Sequence[str],
) -> None:
    jobs = [
        EptJob(
            name=ask.target.role,
            model=str(ask.target.model.path),
            points=tuple(ask.points.values()),
        )
        for ask in asks
        if ask.points
    ]
    if jobs:
        attempt = read_identity(run).attempts[-1].attempt
        run_ept(run, jobs, settings, prompts, uuids, attempt, typer.echo)


def _tell_stored(asks: Sequence[Ask], todo: Sequence[Ask]) -> None:
    for ask, left in zip(asks, todo, strict=True):
        stored = len(ask.points) - len(left.points)
        if stored:
            typer.echo(
                f"{ask.target.role}: {stored} of {len(ask.points)} points stored, not run again"
            )


@contextmanager
def _sampled(run: RunDir, energy: Energy) -> Generator[tuple[str, ...]]:
    """The accelerators that the launcher's sampler measures, or one of our own."""
    measured = os.environ.get(UUIDS_VARIABLE)
    if measured is None:
        with sampling(run, energy) as uuids:
            yield uuids
        return
    try:
        yield tuple(uuid for uuid in measured.split(",") if uuid)
    finally:
        time.sleep(LAST_SAMPLES_S)


def _account(
    run: RunDir,
    asks: Sequence[Ask],
    before: int,
    settings: EptSettings,
    prompts: PromptSource,
) -> None:
    """Add the energy of what has been measured since `before` to the run's file."""
    found = read_measured(run)[before:]
    if not found:
        return
    of_role = {ask.target.role: ask for ask in asks}
    devices = read_identity(run).attempts[-1].devices
    entries: list[EptEntry] = []
    for one in found:
        ask = of_role[one.job]
        request = next(name for name, point in ask.points.items() if point == one.point)
        entries.append(
            entry_of(
                run,
                one,
                role=ask.target.role,  # pyright: ignore[reportArgumentType]
                model=_model(ask.target),
                prompts=prompts.label,
                settings=settings,
                request_hash=request,
                devices=devices,
            )
        )
    write_ept(run.ept_json, read_ept(run.ept_json).with_entries(entries))
    _share(asks, entries)


def _share(asks: Sequence[Ask], entries: Sequence[EptEntry]) -> None:
    """Keep a copy for other runs of models that several share, such as teachers."""
    for ask in asks:
        mine = [
            entry.model_copy(update={"role": "model"})
            for entry in entries
            if entry.role == ask.target.role
        ]
        if ask.target.copies_to is not None and mine:
            path = ask.target.home.path / EPT_FILE
            write_ept(path, read_ept(path).with_entries(mine))


def _left(run: RunDir, ask: Ask) -> Ask:
    """What the run's file does not answer yet for this role."""
    stored = {
        entry.settings.get(REQUEST)
        for entry in read_ept(run.ept_json).entries
        if entry.role == ask.target.role
    }
    return Ask(ask.target, {k: point for k, point in ask.points.items() if k not in stored})


def _take_shared(run: RunDir, asks: Sequence[Ask], boards: set[str]) -> None:
    """Copy in what another run has measured of a shared model, such as a teacher, on the same boards."""
    copied = [
        entry.model_copy(update={"role": ask.target.role})
        for ask in asks
        if ask.target.copies_to is not None
        for entry in read_ept(ask.target.home.path / EPT_FILE).entries
        if entry.settings.get(REQUEST) in ask.points
        and {device.uuid for device in entry.devices} <= boards
    ]
    if copied:
        write_ept(run.ept_json, read_ept(run.ept_json).with_entries(copied))


def _questions(
    target: Target, points: Sequence[EptPoint], settings: EptSettings, prompts: PromptSource
) -> dict[str, EptPoint]:
    """Each point by what names it: the weights, the settings, the prompts and the point."""
    return {
        canonical_hash(
            {
                "weights": target.model.weights_sha256,
                "tokenizer": target.model.tokenizer_sha256,
                "settings": settings.model_dump(mode="json"),
                "prompts": prompts.sha256,
                "point": point.model_dump(mode="json"),
            }
        ): point
        for point in points
    }


def _model(target: Target) -> EptModel:
    return EptModel(
        path=target.model.shown,
        weights_sha256=target.model.weights_sha256,
        tokenizer_sha256=target.model.tokenizer_sha256,
    )


def _run_of(subject: Subject, target: Target, options: EptOptions) -> RunDir:
    """The run that was named; for a folder, a run of its own under `--runs`, which goes on where it was."""
    if subject.run is not None:
        return subject.run
    label = target.model.label
    run = RunDir(options.runs / f"ept-{label}")
    identity = RunIdentity(
        run_id=run.run_id,
        recipe=f"ept {label}",
        recipe_hash=target.model.weights_sha256[:12],
        method="command",
    )
    begin_attempt(run, identity, capture_attempt())
    return run


def _energy(subject: Subject, options: EptOptions) -> Energy:
    """How to meter: as the run's recipe says, else as the options do."""
    if options.meter != "auto" or options.cpu_tdp_w is not None:
        return Energy.model_validate({"meter": options.meter, "cpu_tdp_w": options.cpu_tdp_w})
    return subject.recipe.energy if subject.recipe is not None else Energy()


def _numbers(option: str, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"{option} {text}: accepted are whole numbers above 0, with commas between")
    return tuple(dict.fromkeys(map(int, parts)))
