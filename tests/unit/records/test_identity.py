"""run.json: same experiment or refusal, attempts, and no secrets."""

import json
from pathlib import Path

import pytest

from ekd_nemo.errors import RunDirError
from ekd_nemo.records.capture import capture_attempt, safe_argv, safe_environment, slurm_facts
from ekd_nemo.records.identity import (
    DeviceIdentity,
    Input,
    RunIdentity,
    begin_attempt,
    make_run_id,
    read_identity,
    recipe_hash,
    set_devices,
)
from ekd_nemo.records.rundir import RunDir, find_runs
from ekd_nemo.sources.manifest import shards_sha256

RECIPE = {"name": "r", "seed": 3, "train": {"steps": 5, "lr": 1e-4}}


def identity(**changes: object) -> RunIdentity:
    values = {"run_id": "x", "recipe": "r", "recipe_hash": "h", "method": "sft", "seed": 3}
    return RunIdentity.model_validate({**values, **changes})


def test_hash_ignores_the_seed_and_the_order_of_keys_and_nothing_else() -> None:
    assert recipe_hash(RECIPE) == recipe_hash({**RECIPE, "seed": 4, "repeats": 5})
    assert recipe_hash(RECIPE) == recipe_hash(dict(reversed(RECIPE.items())))
    assert recipe_hash(RECIPE) != recipe_hash({**RECIPE, "train": {"steps": 6, "lr": 1e-4}})
    by = [{**RECIPE, "objective": {"alpha": 0.5, "kernels": name}} for name in ("torch", "triton")]
    assert recipe_hash(by[0]) == recipe_hash(by[1]) != recipe_hash(RECIPE)
    run_id = make_run_id("r", RECIPE, 3)
    assert run_id == f"r-{recipe_hash(RECIPE)[:8]}-s3"


def test_attempts_are_numbered_and_another_experiment_is_refused(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "x")
    assert begin_attempt(run, identity(), capture_attempt()).attempts[-1].attempt == 1
    assert begin_attempt(run, identity(), capture_attempt(2)).attempts[-1].attempt == 2
    stored = run.run_json.read_bytes()
    with pytest.raises(RunDirError, match=r"run.json: recipe_hash is 'h', but .* 'i'; .*--new"):
        begin_attempt(run, identity(recipe_hash="i"), capture_attempt())
    with pytest.raises(RunDirError, match="seed is 3"):
        begin_attempt(run, identity(seed=4), capture_attempt())
    assert run.run_json.read_bytes() == stored
    assert [path.name for path in run.path.iterdir()] == ["run.json"]  # nothing half made


def test_devices_are_noted_in_the_last_attempt(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "x")
    device = DeviceIdentity(
        uuid="GPU-a", name="H100", node="n", device_kind="gpu", meter="nvml", source="measured"
    )
    begin_attempt(run, identity(), capture_attempt())
    begin_attempt(run, identity(), capture_attempt())
    set_devices(run, [device])
    first, last = read_identity(run).attempts
    assert (first.devices, last.devices) == ((), (device,))
    assert last.devices[0].calibration is None
    other = device.model_copy(update={"node": "m"})
    again = device.model_copy(update={"clock_sm_mhz": 1980})
    set_devices(run, [other])  # a later part's sampler, on another node
    set_devices(run, [again])
    assert read_identity(run).attempts[-1].devices == (again, other)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "the file: Invalid JSON"),
        ("[]", "the file: Input should be an object"),
        ('{"run_id": 3}', "run_id: Input should be a valid string"),
        ('{"schema_version": 2}', "schema_version: Input should be 1"),
    ],
)
def test_a_broken_run_json_is_named_with_its_key(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunDirError) as told:
        read_identity(RunDir(tmp_path))
    assert str(told.value).startswith(f"{tmp_path}/run.json: {says}")
    assert "\n" not in str(told.value)


def test_runs_are_found_and_their_absence_told(tmp_path: Path) -> None:
    for name in ("b", "a"):
        begin_attempt(RunDir(tmp_path / name), identity(), capture_attempt())
    assert [run.run_id for run in find_runs(tmp_path)] == ["a", "b"]
    assert find_runs(tmp_path / "a") == [RunDir(tmp_path / "a")]
    empty = tmp_path / "a" / "empty"
    empty.mkdir()
    with pytest.raises(RunDirError, match="holds no run: neither run.json"):
        find_runs(empty)
    with pytest.raises(RunDirError, match="no such directory"):
        find_runs(tmp_path / "nowhere")
    with pytest.raises(RunDirError, match="it has no run.json"):
        RunDir(empty).require()


def test_no_secret_is_kept() -> None:
    environ = {
        "NCCL_DEBUG": "INFO",
        "OMP_NUM_THREADS": "1",
        "SLURM_JOB_ID": "7",
        "CUDA_VISIBLE_DEVICES": "0",
        "NCCL_AUTH_TOKEN": "s3cret",
        "HF_TOKEN": "s3cret",
        "WANDB_API_KEY": "s3cret",
        "HTTPS_PROXY": "http://me:s3cret@proxy",
        "NVTE_PROXY": "http://me:s3cret@proxy",
        "HOME": "/home/me",
    }
    kept = safe_environment(environ)
    assert "s3cret" not in str(kept)
    assert set(kept) == {
        "NCCL_DEBUG",
        "OMP_NUM_THREADS",
        "SLURM_JOB_ID",
        "CUDA_VISIBLE_DEVICES",
        "NVTE_PROXY",
    }
    argv = safe_argv(["ekd", "--set", "hub.token=s3cret", "https://me:s3cret@hub/x", "steps=3"])
    assert argv == ("ekd", "--set", "hub.token=***", "https://***@hub/x", "steps=3")


def test_slurm_facts() -> None:
    assert slurm_facts({}) is None
    facts = slurm_facts({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"})
    assert facts is not None
    assert (facts.job_id, facts.nodes, facts.partition) == ("7", "n[1-2]", None)


def test_a_resumed_run_refuses_shards_that_were_rebuilt(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "x")
    begin_attempt(run, identity(), capture_attempt())  # before the shards were built
    reads = (Input(kind="cache", path="c", run_id="maker"),)
    begun = begin_attempt(run, identity(data_sha256="a", inputs=reads), capture_attempt())
    assert (begun.data_sha256, begun.inputs) == ("a", reads)
    begin_attempt(run, identity(), capture_attempt())
    stored = run.run_json.read_bytes()
    with pytest.raises(RunDirError, match=r"run\.json: data_sha256: .* other shards"):
        begin_attempt(run, identity(data_sha256="b"), capture_attempt())
    assert run.run_json.read_bytes() == stored


def test_the_hash_of_shards_is_that_of_their_content(tmp_path: Path) -> None:
    assert shards_sha256(tmp_path) is None
    manifest = {"schema_version": 1, "files": {"b": {"sha256": "2"}, "a": {"sha256": "1"}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    one = shards_sha256(tmp_path)
    manifest["files"] = {"a": {"sha256": "1"}, "b": {"sha256": "3"}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert one is not None and shards_sha256(tmp_path) != one
