"""What is refused before anything is started: one line that names the place and what is accepted."""

import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from ekd_nemo.config.architecture import read_architecture
from ekd_nemo.config.fit import misfit
from ekd_nemo.config.objective import Objective
from ekd_nemo.config.resolve import resolve_recipe
from ekd_nemo.errors import EXIT_USER, ConfigError, EkdError, MissingExtraError
from ekd_nemo.launch import checks, models
from ekd_nemo.launch.local import plan_local
from ekd_nemo.meter.protocol import MeterUnavailableError
from tests.e2e.training import write_shards
from tests.unit.launch.conftest import CONFIG, write_tokenizer

Usage = namedtuple("Usage", "total used free")


def check(*overrides: str) -> None:
    checks.check_plan(
        plan_local(resolve_recipe("tiny", overrides), runs=Path("runs")), ask_hub=True
    )


def test_a_sound_recipe_passes(here: Path) -> None:
    check()
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "teacher.path=models/gone",
            r"^--set teacher\.path=models/gone: teacher\.path: models/gone: no such folder",
        ),
        (
            "student.parallel.tensor=3",
            r"tensor=3: student\.parallel\.tensor: student: tensor=3 does not divide its 4 attention heads",
        ),
        (
            "student.parallel.pipeline=4",
            r"pipeline=4: student\.parallel\.pipeline: student: pipeline=4 does not divide its 2 layers",
        ),
        (
            "student.init.keep_layers=[0, 4]",
            r"student\.init\.keep_layers: the teacher has no layer 4; accepted: 0 to 3",
        ),
        (
            "data.build.sequence_length=256",
            r"data\.build\.sequence_length is 256; accepted: up to 128",
        ),
        ("data.build=null", r"no manifest\.json; expected a folder made by `ekd data build`"),
    ],
)
def test_refuses(here: Path, override: str, message: str) -> None:
    with pytest.raises(EkdError, match=message) as caught:
        check(override)
    assert caught.value.exit_code == EXIT_USER
    assert "\n" not in str(caught.value)


FEATURE = "method=feature objective={feature: {pairs: [{teacher_layer: 3, student_layer: 1}]}}"
RELATION = "method=relation objective={relation: {weight_angle: 1.0}}"


@pytest.mark.parametrize(
    ("method", "override", "message"),
    [
        (
            FEATURE,
            "objective.feature.pairs=[{teacher_layer: 4, student_layer: 1}]",
            r"objective\.feature\.pairs\.0\.teacher_layer: the teacher has no layer 4; accepted: 0 to 3",
        ),
        (
            FEATURE,
            "objective.feature.pairs=[{teacher_layer: 3, student_layer: 2}]",
            r"pairs\.0\.student_layer: the student has no layer 2; accepted: 0 to 1",
        ),
        (
            FEATURE,
            "objective.feature.pairs=[{teacher_layer: 3, student_layer: 1}, {teacher_layer: 3, student_layer: 1}]",
            r"pairs\.1: the pair of layers 3 and 1 stands there twice",
        ),
        (
            "method=response objective={response: {support: top_k}}",
            "objective.response.k=8",
            r"objective\.response\.support: top_k with a teacher that runs beside .*teacher\.placement cached",
        ),
        (
            RELATION,
            "train.global_batch_size=2",
            r"train\.global_batch_size: 2 sample\(s\) may hold too few sequences .* angles of the batch: 3 or more",
        ),
        (
            RELATION,
            "student.parallel={pipeline: 2, virtual_pipeline: 2}",
            r"virtual_pipeline: 2 chunks on each of 2 stages do not divide the student's 2 layers",
        ),
    ],
)
def test_refuses_what_does_not_fit_the_pair(
    here: Path, method: str, override: str, message: str
) -> None:
    method, objective = method.split(" ", 1)
    with pytest.raises(EkdError, match=message) as caught:
        check(method, objective, override)
    assert caught.value.exit_code == EXIT_USER
    assert "\n" not in str(caught.value)


def test_unlike_widths_need_a_projector(here: Path) -> None:
    wide = read_architecture(Path("models/the teacher"))
    narrow = replace(wide, hidden_size=32, num_layers=2)
    resolved = resolve_recipe("tiny", FEATURE.split(" ", 1))
    section = resolved.recipe.objective.feature
    assert section is not None
    objective = Objective(feature=section.model_copy(update={"projector": "none"}))
    recipe = resolved.recipe.model_copy(update={"objective": objective})
    wrong = misfit(recipe, narrow, wide)
    assert wrong is not None
    assert wrong[0] == "objective.feature.projector"
    assert "accepted: linear" in wrong[1]
    assert misfit(resolved.recipe, narrow, wide) is None


def test_a_meter_that_is_not_there_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(settings: object) -> None:
        raise MeterUnavailableError("nvml: no driver")

    monkeypatch.setattr(checks, "open_meters", none)
    expected = (
        r"^--set energy\.meter=nvml: energy\.meter: nvml: no driver; auto takes what there is$"
    )
    with pytest.raises(MeterUnavailableError, match=expected) as caught:
        checks.check_meter(resolve_recipe("tiny", ["energy.meter=nvml"]))
    assert caught.value.exit_code == EXIT_USER
    checks.check_meter(resolve_recipe("tiny", ["energy.meter=auto"]))


def test_a_teacher_without_config_is_named_with_line(here: Path) -> None:
    (here / "models" / "the teacher" / "config.json").unlink()
    with pytest.raises(
        EkdError, match=r"^recipes/tiny\.yaml:3: teacher\.path: .*config\.json: no such file"
    ):
        check()


def test_the_teachers_layout_is_checked_as_well(here: Path) -> None:
    other = here / "models" / "other"
    other.mkdir()
    (other / "config.json").write_text(
        json.dumps({**CONFIG, "num_attention_heads": 8, "num_key_value_heads": 8})
    )
    with pytest.raises(EkdError, match=r"tensor: teacher: tensor=4|tensor: teacher: .*tensor=4"):
        check(
            "student.init={source: random, path: models/other}",
            "student.parallel.tensor=4",
        )


def test_a_full_disk_is_said_beforehand(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 10**5))
    with pytest.raises(
        EkdError, match=r"runs: 0\.0 GB are free and checkpoints and export need about 0\.0 GB"
    ):
        check()


def test_adapters_need_less_of_a_disk(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = read_architecture(Path("models/the teacher")).with_layers(2).num_parameters()
    usage = Usage(10**9, 10**9, 20 * parameters)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(EkdError, match="checkpoints and export need about"):
        check()
    check("student.lora={rank: 4}")


def test_hub_ids_and_folders(here: Path) -> None:
    assert models.is_hub_id("meta-llama/Llama-3.1-8B-Instruct")
    assert not models.is_hub_id("models/gone")
    assert not models.is_hub_id("assets/teacher/gone")
    assert not models.is_hub_id("/abs/gone")


def test_a_missing_extra_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "lm_eval" else 1)
    recipe = resolve_recipe("tiny").recipe
    checks.check_extras(recipe)
    evaluated = resolve_recipe("tiny", ["evaluation.lm.tasks=[x]"]).recipe
    with pytest.raises(MissingExtraError, match=r"pip install 'ekd-nemo\[eval\]'"):
        checks.check_extras(evaluated)


def test_a_hub_id_that_cannot_be_had_is_refused_before_anything_is_made(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        EkdError, match=r"nope/teacher: no such folder, and not to be had"
    ) as caught:
        check("teacher.path=nope/teacher")
    assert str(caught.value).startswith("--set teacher.path=nope/teacher: teacher.path: ")
    assert caught.value.exit_code == EXIT_USER
    assert not Path("runs").exists()


def test_models_and_shards_must_share_their_token_ids(here: Path) -> None:
    student = here / "models" / "student"
    shutil.copytree(here / "models" / "the teacher", student)
    from_folder = ("student.init={source: checkpoint, path: models/student}",)
    check(*from_folder)
    write_tokenizer(student, ["<end>", "b", "a"])
    with pytest.raises(ConfigError, match=r"student\.init\.path: the tokenizer of models/student"):
        check(*from_folder)
    write_tokenizer(here / "models", ["other"])
    with pytest.raises(ConfigError, match=r"data\.build\.tokenizer: the tokenizer of models gives"):
        check("data.build.tokenizer=models")


def test_models_of_unlike_vocabularies_are_refused(here: Path) -> None:
    other = here / "models" / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": 300}))
    student = "student.init={source: random, path: models/other}"
    check(student)  # nothing is known of the tokenizer before there are shards
    changes = (student, "data.path=shards", "data.build=null")
    _shards(here / "shards", 257)
    said = (
        r"student\.init\.path: .* 300 entries, the teacher's 256, and the tokenizer of shards 257"
    )
    with pytest.raises(ConfigError, match=said):
        check(*changes)
    shutil.rmtree(here / "shards")
    _shards(here / "shards", 256)
    check(*changes)


def _shards(folder: Path, ids: int) -> None:
    write_shards(folder, vocab=ids)
    manifest = folder / "manifest.json"
    found = json.loads(manifest.read_text()) | {"settings": {"tokenizer": "elsewhere"}}
    manifest.write_text(json.dumps(found))
