"""Which caches can stand in for the teacher of which recipes."""

import json
from pathlib import Path
from typing import Any

import pytest

from ekd_nemo.config.recipe import Recipe
from ekd_nemo.errors import ConfigError, DataError, UserError
from ekd_nemo.sources.cache_fit import check_build_fits, check_cache_fits
from ekd_nemo.sources.cache_manifest import (
    Block,
    Building,
    CacheIdentity,
    CacheManifest,
    Making,
    add_making,
    read_building,
    read_cache_manifest,
    read_made,
    write_building,
    write_cache_manifest,
)

TOP = {"alpha": 0.5, "response": {"support": "top_k", "k": 8}}
DENSE = {"alpha": 0.5, "response": {}}
SAMPLED = {"alpha": 0.5, "response": {"support": "sampled"}}
FEATURE = {"alpha": 0.5, "feature": {"pairs": [{"teacher_layer": 3, "student_layer": 0}]}}
RELATION = {"alpha": 0.5, "relation": {"weight_distance": 1.0}}
MASKED = {"alpha": 0.5, "relation": {"pooling": "masked", "weight_distance": 1.0}}
TOKENS = {"alpha": 0.5, "relation": {"scope": "tokens", "weight_distance": 1.0}}
KINDS: dict[str, dict[str, Any]] = {
    "topk": {"temperature": 1.0, "k": 8, "min_probability": 0.0, "probability_bits": 8},
    "sampled": {"temperature": 1.0, "samples": 9, "seed": 0, "probability_bits": 8},
    "hidden": {"final": True, "storage": "bf16"},
    "layers": {"layers": (3,), "storage": "int8"},
    "embeddings": {"pooling": "mean"},
}


def identity(kind: str, **changes: Any) -> CacheIdentity:
    return CacheIdentity.model_validate(
        {
            "teacher": "t",
            "tokenizer": "k",
            "vocab_size": 100,
            "hidden_size": 8,
            "precision": "fp32",
            "kind": "hidden" if kind == "layers" else kind,
            **KINDS[kind],
            **changes,
        }
    )


def manifest(who: CacheIdentity) -> CacheManifest:
    block = Block(
        file="blocks/block-00000000.arrow",
        samples=2,
        tokens=9,
        bytes=99,
        checksum="a",
        frame_checksum="b",
        payload_start=3,
        payload_bytes=5,
    )
    return CacheManifest(identity=who, samples=2, tokens=9, index_checksum="c", blocks=(block,))


def recipe(tmp_path: Path, objective: dict[str, Any], kind: str = "topk") -> Recipe:
    families = [name for name in ("response", "feature", "relation") if name in objective]
    data = tmp_path / "data"
    data.mkdir(exist_ok=True)
    text = {"schema_version": 1, "sequence_length": 4, "tokenizer": {"sha256": "k"}}
    (data / "manifest.json").write_text(json.dumps(text))
    build = {"kind": kind}
    return Recipe.model_validate(
        {
            "name": "r",
            "method": families[0] if len(families) == 1 else "combined",
            "teacher": {
                "path": str(tmp_path / "nowhere"),
                "placement": "cached",
                "cache": {"path": str(tmp_path / "cache"), "build": build},
            },
            "student": {"init": {"source": "checkpoint", "path": "s"}},
            "data": {"path": str(data)},
            "objective": objective,
            "optimizer": {"lr": 0.1},
            "train": {"steps": 1, "global_batch_size": 4},
        }
    )


def store(tmp_path: Path, who: CacheIdentity) -> None:
    (tmp_path / "cache").mkdir(exist_ok=True)
    write_cache_manifest(tmp_path / "cache", manifest(who))


@pytest.mark.parametrize(
    ("kind", "objective"),
    [
        ("topk", TOP),
        ("sampled", SAMPLED),
        ("hidden", DENSE),
        ("layers", FEATURE),
        ("hidden", RELATION),
        ("embeddings", RELATION),
        ("hidden", TOKENS),
    ],
)
def test_what_fits(tmp_path: Path, kind: str, objective: dict[str, Any]) -> None:
    store(tmp_path, identity(kind))
    layers = (3,) if kind == "layers" else ()
    asked = recipe(tmp_path, objective, "hidden" if kind == "layers" else kind)
    assert check_cache_fits(asked, layers) == identity(kind)
    check_build_fits(asked)


@pytest.mark.parametrize(
    ("kind", "objective", "match"),
    [
        ("topk", DENSE, "kind topk; objective.response.support dense takes kind hidden"),
        ("hidden", TOP, "support top_k takes kind topk"),
        ("layers", DENSE, "without final hidden states"),
        ("embeddings", DENSE, "dense takes kind hidden"),
        ("topk", FEATURE, "objective.feature takes kind hidden"),
        ("topk", RELATION, "takes kind embeddings"),
        ("embeddings", TOKENS, "without final hidden states"),
    ],
)
def test_what_holds_too_little_is_refused(
    tmp_path: Path, kind: str, objective: dict[str, Any], match: str
) -> None:
    store(tmp_path, identity(kind))
    with pytest.raises(ConfigError, match=match):
        check_cache_fits(recipe(tmp_path, objective))


@pytest.mark.parametrize(
    ("who", "objective", "layers", "match"),
    [
        (identity("topk", temperature=2.0), TOP, (), r"temperature 2\.0; .*temperature is 1\.0"),
        (identity("topk", tokenizer="other"), TOP, (), "for the tokenizer other"),
        (identity("layers"), FEATURE, (2, 3), "holds teacher layers 3; the objective needs 2"),
        (identity("embeddings", pooling="last"), RELATION, (), "pooled by last"),
    ],
)
def test_a_cache_of_something_else_is_refused(
    tmp_path: Path,
    who: CacheIdentity,
    objective: dict[str, Any],
    layers: tuple[int, ...],
    match: str,
) -> None:
    store(tmp_path, who)
    with pytest.raises(UserError, match=match):
        check_cache_fits(recipe(tmp_path, objective), layers)


@pytest.mark.parametrize(
    ("objective", "kind", "match"),
    [
        (DENSE, "topk", "accepted: hidden"),
        (TOP, "hidden", "accepted: topk"),
        (FEATURE, "embeddings", "accepted: hidden"),
        (RELATION, "topk", "accepted: embeddings, hidden"),
        (MASKED, "embeddings", "accepted: hidden"),
        ({"response": TOP["response"], "relation": RELATION["relation"]}, "topk", "none: all fam"),
    ],
)
def test_a_build_that_could_not_serve_is_refused_before_it_costs_anything(
    tmp_path: Path, objective: dict[str, Any], kind: str, match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        check_build_fits(recipe(tmp_path, objective, kind))


def test_manifests_come_back_and_damage_is_named(tmp_path: Path) -> None:
    who = identity("topk")
    write_building(tmp_path, Building(identity=who, samples=2, samples_digest="d"))
    found = read_building(tmp_path)
    assert found is not None
    assert found.identity == who
    with pytest.raises(DataError, match="not finished"):
        read_cache_manifest(tmp_path)
    write_cache_manifest(tmp_path, manifest(who))
    assert read_building(tmp_path) is None
    assert read_cache_manifest(tmp_path) == manifest(who)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"samples": 2', '"samples": 3', 1))
    with pytest.raises(DataError, match=r"manifest\.json: damaged"):
        read_cache_manifest(tmp_path)


def test_the_account_adds_up_runs_and_keeps_what_is_missing(tmp_path: Path) -> None:
    def making(run_id: str, energy_j: float | None) -> Making:
        return Making(
            run_id=run_id,
            run=f"runs/{run_id}",
            energy_j=energy_j,
            energy_source="measured" if energy_j is not None else None,
            teacher_cache_j=energy_j,
            why_no_energy=None if energy_j is not None else "no samples",
            tokens=10,
            samples=2,
        )

    assert read_made(tmp_path).energy_j is None
    add_making(tmp_path, making("a", 10.0))
    add_making(tmp_path, making("b", 5.0))
    add_making(tmp_path, making("a", 12.0))
    assert read_made(tmp_path).energy_j == 17.0
    add_making(tmp_path, making("c", None))
    assert read_made(tmp_path).energy_j is None


def test_identities_tell_themselves_apart() -> None:
    one, other = identity("topk"), identity("topk", k=9)
    assert one.key != other.key
    assert one.differences(other) == ["k is 8, wanted 9"]
    assert one.key == identity("topk").key
