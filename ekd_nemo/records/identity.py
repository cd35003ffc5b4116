"""What a run is: `run.json`.

Written by the launcher before anything is measured; each launch adds an attempt.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ekd_nemo.errors import RunDirError
from ekd_nemo.records.atomic import write_text
from ekd_nemo.records.rundir import RunDir

Count = Annotated[int, Field(ge=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Sourced(_Section):
    """A factor that somebody gave, and where it comes from; never folded into joules."""

    value: Annotated[float, Field(gt=0)]
    unit: str
    source: Annotated[str, Field(min_length=1)]


class Factors(_Section):
    """PUE, grid carbon and price of energy; null unless given with a source."""

    pue: Sourced | None = None
    grid_carbon: Sourced | None = None
    price: Sourced | None = None


class DeviceIdentity(_Section):
    """One measured device of the run.

    Attributes:
        calibration: factor that makes this board's power right; null: never calibrated.
    """

    uuid: str
    name: str
    node: str
    device_kind: Literal["gpu", "cpu", "dram"]
    meter: str
    source: Literal["measured", "estimated", "replayed"]
    clock_sm_mhz: Count | None = None
    clock_memory_mhz: Count | None = None
    power_limit_mw: Count | None = None
    calibration: Sourced | None = None


class Slurm(_Section):
    """The Slurm job that an attempt ran in."""

    job_id: str
    array_job_id: str | None = None
    array_task_id: str | None = None
    cluster: str | None = None
    partition: str | None = None
    nodes: str | None = None


class CodeVersion(_Section):
    """Version of the package; commit and state of its checkout, null outside of one."""

    version: str
    commit: str | None = None
    dirty: bool | None = None


class Attempt(_Section):
    """One launch of the run: the first, or a resumption."""

    attempt: Annotated[int, Field(ge=1)]
    t_wall_ns: Count
    node: str
    boot_id: str
    argv: tuple[str, ...]
    code: CodeVersion
    python: str
    platform: str
    packages: Mapping[str, str]
    environment: Mapping[str, str]
    slurm: Slurm | None = None
    world_size: Count | None = None
    devices: tuple[DeviceIdentity, ...] = ()


class Input(_Section):
    """What the run read that cost energy to make; `run_id` is null if its maker is unknown."""

    kind: Literal["cache", "checkpoint", "data"]
    path: str
    run_id: str | None = None


class RunIdentity(_Section):
    """The content of run.json.

    Attributes:
        recipe_hash: of the resolved recipe without its seed: repeats of one experiment share it.
        method: sft, response, feature, relation, combined; `command` for a recorded command.
        data_sha256: of the shards' files, from the first attempt that found them built; null: trained on none.
    """

    schema_version: Literal[1] = 1
    run_id: str
    recipe: str
    recipe_hash: str
    method: str
    seed: Count | None = None
    baseline: str | None = None
    inputs: tuple[Input, ...] = ()
    data_sha256: str | None = None
    factors: Factors = Factors()
    attempts: tuple[Attempt, ...] = ()

    @model_validator(mode="after")
    def _attempts_count_up(self) -> Self:
        numbers = [a.attempt for a in self.attempts]
        if numbers != list(range(1, len(numbers) + 1)):
            raise ValueError(f"attempts must be numbered 1..{len(numbers)}, got {numbers}")
        return self

    def check_same(self, other: "RunIdentity", path: Path) -> None:
        """Raise RunDirError unless `other` is the same experiment as this one, stored at `path`."""
        for key in ("run_id", "recipe_hash", "seed"):
            stored, given = getattr(self, key), getattr(other, key)
            if stored != given:
                raise RunDirError(
                    f"{path}: {key} is {stored!r}, but this launch has {given!r}; "
                    "take another --run-id, or --new to start afresh"
                )
        shards = {self.data_sha256, other.data_sha256} - {None}
        if len(shards) > 1:
            raise RunDirError(
                f"{path}: data_sha256: the run began on other shards than those that are there now; put the old "
                "ones back, take another --run-id, or --new to start afresh"
            )


def recipe_hash(resolved: Mapping[str, Any]) -> str:
    """First twelve hex digits of SHA-256 of the resolved recipe's JSON, without `seed` and `repeats`.

    So the repeats of a recipe share it, however many there are. `objective.kernels` is left out as well: who
    computes the loss is no part of what is computed, and a run may go on where there is no Triton.
    """
    body = {key: value for key, value in resolved.items() if key not in ("seed", "repeats")}
    if "objective" in body:
        objective: Mapping[str, Any] = body["objective"]
        body["objective"] = {key: objective[key] for key in objective if key != "kernels"}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def make_run_id(recipe: str, resolved: Mapping[str, Any], seed: int) -> str:
    """The run's name: recipe, eight digits of its hash, seed; the same on every rank."""
    return f"{recipe}-{recipe_hash(resolved)[:8]}-s{seed}"


def read_identity(run: RunDir) -> RunIdentity:
    """run.json, checked.

    Raises: RunDirError naming file and key if it is absent or not one.
    """
    run.require()
    try:
        return RunIdentity.model_validate_json(run.run_json.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise RunDirError(f"{run.run_json}: {where}: {first['msg']}") from None


def write_identity(run: RunDir, identity: RunIdentity) -> None:
    """Replace run.json in one rename; makes the folder."""
    run.path.mkdir(parents=True, exist_ok=True)
    write_text(run.run_json, identity.model_dump_json(indent=2) + "\n")


def begin_attempt(run: RunDir, identity: RunIdentity, attempt: Attempt) -> RunIdentity:
    """Store the identity, or check it against the stored one; add `attempt`, numbered.

    Args:
        run: the run directory; made if absent.
        identity: of this launch; its own attempts are not looked at. What it reads is taken over where the stored
            one, written before that was made, names nothing.
        attempt: the facts of this launch; its number is replaced.

    Returns:
        The stored identity; `attempts[-1].attempt` is this launch's number.
    Raises: RunDirError if the folder holds another experiment.
    """
    stored = identity.model_copy(update={"attempts": ()})
    if run.run_json.is_file():
        stored = read_identity(run)
        stored.check_same(identity, run.run_json)
        reads = {
            "data_sha256": stored.data_sha256 or identity.data_sha256,
            "inputs": stored.inputs or identity.inputs,
        }
        stored = stored.model_copy(update=reads)
    numbered = attempt.model_copy(update={"attempt": len(stored.attempts) + 1})
    stored = stored.model_copy(update={"attempts": (*stored.attempts, numbered)})
    write_identity(run, stored)
    return stored


def set_devices(run: RunDir, devices: Sequence[DeviceIdentity]) -> RunIdentity:
    """Note measured devices in the last attempt; those of its other samplers stay.

    The parts of a launch may run on different nodes of it, each with samplers of its own.
    """
    stored = read_identity(run)
    if not stored.attempts:
        raise RunDirError(f"{run.run_json}: attempts: there is none to note devices in")
    known = {(device.node, device.uuid): device for device in stored.attempts[-1].devices}
    known |= {(device.node, device.uuid): device for device in devices}
    last = stored.attempts[-1].model_copy(update={"devices": tuple(known.values())})
    stored = stored.model_copy(update={"attempts": (*stored.attempts[:-1], last)})
    write_identity(run, stored)
    return stored
