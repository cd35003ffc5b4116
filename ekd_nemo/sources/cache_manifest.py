"""The manifest of a teacher's cache: whose outputs it holds, in which form, and what they cost.

A cache is a folder: `manifest.json` (identity, counts, blocks), `index.arrow` (sample to block and
row), `blocks/` (the outputs) and `made.json` (runs, energy and tokens of its making, which no two
builds share). `building.json` stands in for the manifest until the build is done.
"""

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from ekd_nemo.config.base import Count, PositiveFloat, PositiveInt
from ekd_nemo.errors import DataError
from ekd_nemo.records.atomic import write_text

MANIFEST, BUILDING, MADE, INDEX, BLOCKS = (
    "manifest.json",
    "building.json",
    "made.json",
    "index.arrow",
    "blocks",
)
Kind = Literal["topk", "sampled", "hidden", "embeddings"]
Storage = Literal["fp32", "bf16", "int8"]
SPARSE: tuple[Kind, ...] = ("topk", "sampled")


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CacheIdentity(_Frozen):
    """What decides every byte of a cache, beside the samples themselves.

    Attributes:
        teacher: fingerprint of the weights, see `sources.weights_identity`.
        tokenizer: sha256 of the tokenizer of the shards.
        vocab_size: entries of the teacher's vocabulary.
        hidden_size: width of the teacher.
        precision: of the teacher's forward pass.
        kind: what is kept of its outputs.
        temperature: that the distributions were made at; null for kinds without one.
        k: ids a token, topk.
        min_probability: below it ids of the top k are left to the tail, topk.
        samples: draws a token, sampled.
        seed: of the draws, sampled.
        probability_bits: 8 or 16, topk and sampled.
        final: whether the final hidden states are kept, hidden.
        layers: whose outputs are kept, counted from 0, hidden.
        storage: of hidden states.
        pooling: of embeddings.
        zstd_level: 0: bytes are stored as they are.
        block_samples: samples of one block.
    """

    schema_version: Literal[1] = 1
    teacher: str
    tokenizer: str
    vocab_size: PositiveInt
    hidden_size: PositiveInt
    precision: Literal["fp32", "bf16", "fp8"]
    kind: Kind
    temperature: PositiveFloat | None = None
    k: PositiveInt | None = None
    min_probability: float | None = None
    samples: PositiveInt | None = None
    seed: Count | None = None
    probability_bits: Literal[8, 16] | None = None
    final: bool = False
    layers: tuple[Count, ...] = ()
    storage: Storage | None = None
    pooling: Literal["mean", "last"] | None = None
    zstd_level: Count = 3
    block_samples: PositiveInt = 64

    @model_validator(mode="after")
    def _fits_kind(self) -> "CacheIdentity":
        wanted = {
            "topk": ("temperature", "k", "min_probability", "probability_bits"),
            "sampled": ("temperature", "samples", "seed", "probability_bits"),
            "hidden": ("storage",),
            "embeddings": ("pooling",),
        }[self.kind]
        every = "temperature k min_probability samples seed probability_bits storage pooling"
        for name in every.split():
            if (getattr(self, name) is not None) != (name in wanted):
                verb = "takes" if name in wanted else "takes no"
                raise ValueError(f"kind {self.kind} {verb} {name}")
        if (self.kind == "hidden") != (self.final or bool(self.layers)):
            raise ValueError("kind hidden keeps final or layers, no other kind does")
        return self

    @property
    def key(self) -> str:
        """32 hex digits over all of it."""
        return blake2b(_canonical(self.model_dump(mode="json")), digest_size=16).hexdigest()

    def differences(self, other: "CacheIdentity") -> list[str]:
        """Each key in which `other` is not the same: what it is here and there."""
        return [
            f"{name} is {getattr(self, name)}, wanted {getattr(other, name)}"
            for name in type(self).model_fields
            if getattr(self, name) != getattr(other, name)
        ]


class Block(_Frozen):
    """One file of a cache; checksums are 64-bit xxh3 in hex.

    Attributes:
        checksum: of the whole file.
        frame_checksum: of the file without its payload, which samples' own checksums cover.
        payload_start: the payload's first byte in the file.
    """

    file: str
    samples: PositiveInt
    tokens: Count
    bytes: PositiveInt
    checksum: str
    frame_checksum: str
    payload_start: Count
    payload_bytes: Count


class CacheManifest(_Frozen):
    """The content of manifest.json."""

    identity: CacheIdentity
    samples: PositiveInt
    tokens: PositiveInt
    index_checksum: str
    blocks: tuple[Block, ...]


class Building(_Frozen):
    """The content of building.json: what an unfinished build is going to hold.

    Attributes:
        samples: distinct samples, in the order of their blocks.
        samples_digest: over their hashes in that order.
    """

    identity: CacheIdentity
    samples: PositiveInt
    samples_digest: str


class Making(_Frozen):
    """One run that worked on a cache; energy is null where none was measured, with the reason.

    Attributes:
        energy_j: of the run's accelerators, from its start to its end.
        energy_source: measured, estimated or replayed.
        teacher_cache_j: the share of phase `teacher_cache`.
        tokens: that this run's forward passes saw.
    """

    run_id: str
    run: str
    energy_j: float | None
    energy_source: str | None
    teacher_cache_j: float | None
    why_no_energy: str | None = None
    tokens: Count
    samples: Count


class Made(_Frozen):
    """The content of made.json: who made a cache, and at what cost."""

    runs: tuple[Making, ...] = ()

    @property
    def energy_j(self) -> float | None:
        """E_cache in J over all runs; null if any of them is without."""
        found = [each.energy_j for each in self.runs]
        if not found or None in found:
            return None
        return sum(energy for energy in found if energy is not None)


def read_cache_manifest(folder: Path | str) -> CacheManifest:
    """The manifest of a finished cache.

    Raises:
        DataError: if there is none, it is not finished, or its checksum does not hold.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file() and (Path(folder) / BUILDING).is_file():
        raise DataError(f"{folder}: the cache is not finished; `ekd cache build` goes on with it")
    return CacheManifest.model_validate(_read(path, "`ekd cache build`"))


def write_cache_manifest(folder: Path, manifest: CacheManifest) -> None:
    """Finish a cache: the manifest appears whole."""
    _write(folder / MANIFEST, manifest)
    (folder / BUILDING).unlink(missing_ok=True)


def read_building(folder: Path) -> Building | None:
    """What is, or was, being built in a folder; None in a fresh one."""
    path = folder / BUILDING
    return Building.model_validate(_read(path, "a build")) if path.is_file() else None


def write_building(folder: Path, building: Building) -> None:
    """Say which cache a folder is going to hold."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / BLOCKS).mkdir(exist_ok=True)
    _write(folder / BUILDING, building)


def read_made(folder: Path | str) -> Made:
    """The account of a cache's making; empty where nobody has written one."""
    path = Path(folder) / MADE
    return Made.model_validate(_read(path, "a build")) if path.is_file() else Made()


def add_making(folder: Path, making: Making) -> None:
    """Add a run to the account; a run that is there already is replaced."""
    others = [each for each in read_made(folder).runs if each.run_id != making.run_id]
    _write(folder / MADE, Made(runs=(*others, making)))


def _canonical(body: Any) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _checksum(body: Any) -> str:
    return blake2b(_canonical(body), digest_size=16).hexdigest()


def _write(path: Path, content: BaseModel) -> None:
    body = content.model_dump(mode="json")
    whole = {"checksum": _checksum(body), **body}
    write_text(path, json.dumps(whole, indent=1) + "\n")


def _read(path: Path, maker: str) -> dict[str, Any]:
    """The JSON object of a file of ours, once its own checksum holds."""
    try:
        text = path.read_bytes()
        body = cast("dict[str, Any]", json.loads(text))
        given = body.pop("checksum")
        whole = json.dumps({"checksum": given, **body}, indent=1) + "\n"
        if given != _checksum(body) or text != whole.encode():
            raise DataError(f"{path}: damaged, its checksum does not hold")
        _validate(path, body)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; a folder made by {maker} is accepted") from error
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        detail = " ".join(str(error).split())
        raise DataError(f"{path}: damaged, it cannot be read ({detail})") from error
    return body


def _validate(path: Path, body: dict[str, Any]) -> None:
    version = body.get("identity", body).get("schema_version", 1)
    if version != 1:
        raise DataError(f"{path}: schema_version is {version}; this version of ekd reads 1")
    models = {MANIFEST: CacheManifest, BUILDING: Building, MADE: Made}
    try:
        models[path.name].model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise DataError(f"{path}: {key}: {first['msg']}") from error
