"""Plans of the shipped recipes: all can be planned, alternatives differ by their cause, refusals say how much."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ekd_nemo.cli.app import main
from ekd_nemo.config.cluster import PACKAGED_CLUSTERS, Cluster, load_cluster
from ekd_nemo.config.resolve import PACKAGED_RECIPES, list_recipes, resolve_recipe
from ekd_nemo.errors import EkdError
from ekd_nemo.planner.alternatives import Alternative, Machine, alternatives
from ekd_nemo.planner.assumptions import Assumptions
from ekd_nemo.planner.estimate import Estimate
from ekd_nemo.planner.memory import GIB
from ekd_nemo.planner.scenario import models
from tests.unit.planner.models import LLAMA_70B

FOLDERS = [PACKAGED_RECIPES]
ON_CLUSTERS = sorted(name for name in list_recipes(FOLDERS) if not name.startswith("smoke"))
VARIANTS = ("", "+split", "+cached", "+fp8", "+lora", "+split+fp8+lora", "+cached+fp8+lora")


def cluster(name: str = "h100") -> Cluster:
    return load_cluster(str(PACKAGED_CLUSTERS / f"{name}.yaml")).cluster


def planned(name: str, on: Cluster, *overrides: str) -> list[Alternative]:
    resolved = resolve_recipe(name, overrides, FOLDERS)
    machine = Machine(on, on.world_size, Assumptions(), 1.0, resolved.place)
    return alternatives(resolved.recipe, models(resolved.recipe, 8192, resolved.place), machine)


def own(name: str, on: Cluster, *overrides: str) -> Estimate:
    row = planned(name, on, *overrides)[0]
    assert row.found is not None, row.reason
    return row.found


@pytest.mark.parametrize("name", ON_CLUSTERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_recipe_fits_four_nodes_of_h100(name: str, variant: str) -> None:
    if name.startswith("sft") and ("split" in variant or "cached" in variant):
        return  # no teacher
    found = own(name + variant, cluster())
    assert found.fits, f"{found.missing_gib:.1f} GiB too much"
    assert 0.03 < found.mfu < 0.7
    assert found.energy_kwh > 0
    assert found.scenario.ranks == 32


@pytest.mark.parametrize("name", ON_CLUSTERS)
def test_fp8_is_refused_where_the_boards_have_none(name: str) -> None:
    row = planned(name + "+fp8", cluster("a100"))[0]
    assert row.found is None
    assert (
        "precision is fp8, and A100 SXM4 80GB of cluster a100 has no FP8; accepted: bf16"
        in row.reason
    )
    assert "_cluster.yaml:" in row.reason or "_distil.yaml:" in row.reason
    assert not [each for each in planned(name, cluster("a100")) if "fp8" in each.label]


def test_placements_differ_by_their_cause() -> None:
    rows = {row.label: row.found for row in planned("response_70b_to_8b", cluster())}
    shared, cached = rows["shared bf16"], rows["cached bf16"]
    split = next(
        found for label, found in rows.items() if label.startswith("split") and "bf16" in label
    )
    assert shared is not None
    assert cached is not None
    assert split is not None
    # The shared teacher's eighth of 70B parameters is the difference of a student's memory, but for the buffers.
    # Its head is not in its eighth: the rows stand as the student's vocabulary is cut (models/frozen.py).
    weights = shared.memory["student"].teacher_weights
    body = LLAMA_70B.num_parameters() - LLAMA_70B.vocab_size * LLAMA_70B.hidden_size
    assert weights == pytest.approx(body * 2 / 8, rel=0.01)
    assert set(split.memory) == {"student", "teacher"}
    # A split teacher works on half of the devices, and while the student does.
    assert 0 < split.time.teacher < 2 * shared.time.teacher
    assert split.time.compute == pytest.approx(2 * shared.time.compute)
    assert cached.time.teacher == 0
    assert cached.cache is not None
    assert cached.cache.energy_kwh + cached.energy_kwh == pytest.approx(shared.energy_kwh, rel=0.15)
    assert cached.cache.size_tb == pytest.approx(500 * 32 * 8192 * 8192 * 2 / 1e12)


def test_the_best_split_is_one_that_divides_the_batch() -> None:
    on = cluster()
    # 24 teacher ranks are three copies, which do not divide 32 samples; 8 leave 12 copies of the student, nor do they.
    best = own("response_70b_to_8b+split", on, "teacher.split.ranks=16").step_s
    row = next(
        r
        for r in planned("response_70b_to_8b", on)
        if r.label.startswith("split") and "bf16" in r.label
    )
    assert row.found is not None
    assert row.found.step_s == pytest.approx(best)


def test_the_exact_relation_loss_costs_one_more_forward_pass() -> None:
    on = cluster()
    relation, feature = own("relation_70b_to_8b", on), own("feature_70b_to_8b", on)
    ratio = relation.time.compute / feature.time.compute
    assert 1.25 < ratio < 4 / 3  # of the layers, not of the head


def test_lora_needs_less_and_offload_frees_the_teacher() -> None:
    on = cluster()
    full, lora = own("response_70b_to_8b", on), own("response_70b_to_8b+lora", on)
    assert lora.memory["student"].optimizer < full.memory["student"].optimizer / 50
    away = own("response_70b_to_8b", on, "teacher.offload=true").memory["student"]
    assert away.teacher_weights == 0
    assert away.total < full.memory["student"].total - 10 * GIB


def test_what_cannot_fit_is_refused_with_the_amount(capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "recipe",
        "plan",
        "response_70b_to_8b",
        "--cluster",
        "rtx",
        "--set",
        "teacher.parallel.tensor=8",
    ]
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert "GiB too much" in out
    assert "shared bf16 does not fit cluster rtx: a student device needs" in err
    assert err.count("\n") == 1


REFUSED = [
    (["--nodes", "9"], "--nodes 9: cluster h100 has 4"),
    (["--set", "student.parallel.tensor=3"], "tensor=3 does not divide"),
    (["--set", "teacher.parallel.pipeline=7"], "pipeline=7 does not divide its 80 layers"),
    (["--set", "train.global_batch_size=24"], "multiples of 16, or fewer nodes (--nodes)"),
    (
        ["--set", "student.parallel.tensor=8", "--set", "student.parallel.pipeline=8"],
        "64 devices, and 32 are there",
    ),
    (["--set", "teacher.path=meta-llama/Unknown"], "none of the models that a plan knows"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_refusals_are_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipe", "plan", "response_70b_to_8b", "--cluster", "h100", *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_json_names_units_and_assumptions(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["recipe", "plan", "combined_72b_to_7b", "--cluster", "h100", "--format", "json"]) == 0
    )
    data = json.loads(capsys.readouterr().out)
    assert data["source"] == "estimated"
    assert data["assumptions"]["matmul"] == Assumptions().matmul
    chosen = data["alternatives"][0]
    assert chosen["chosen"]
    assert chosen["step_s"] == pytest.approx(sum(chosen["step_parts_s"].values()))
    student = chosen["memory_gib"]["student"]
    assert student["total"] == pytest.approx(sum(student.values()) - student["total"])
    assert chosen["energy_kwh_with_pue"] is None  # not given: absent, not multiplied by one


def test_the_table_shows_the_choice_the_alternatives_and_the_assumptions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["recipe", "plan", "feature_70b_to_8b+split", "--cluster", "h100"]) == 0
    out = capsys.readouterr().out
    for text in (
        "* split 16+16 bf16",
        "shared fp8",
        "cached bf16",
        "memory of a teacher device",
        "matmul_fp8",
    ):
        assert text in out


def test_a_plan_for_1024_devices_is_quick(tmp_path: Path) -> None:
    text = (PACKAGED_CLUSTERS / "h100.yaml").read_text()
    file = tmp_path / "big.yaml"
    file.write_text(text.replace("name: h100", "name: big", 1).replace("count: 4", "count: 128"))

    def seconds(*words: str) -> float:
        start = time.monotonic()
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        return time.monotonic() - start

    words = ("recipe", "plan", "response_70b_to_8b", "--cluster", str(file))
    plan = min(
        seconds("-m", "ekd_nemo", *words, "--set", "train.global_batch_size=1024") for _ in range(2)
    )
    nothing = min(seconds("-c", "pass") for _ in range(2))
    # 0.7 s where python -c pass takes 0.02: a bound in multiples holds on slow and busy machines as well.
    assert plan < 100 * nothing


def test_planning_raises_only_its_own_errors() -> None:
    for name in ON_CLUSTERS:
        for on in ("a100", "rtx"):
            try:
                planned(name, cluster(on))
            except EkdError as error:
                assert "\n" not in str(error)


def test_the_best_split_is_searched_among_all() -> None:
    on, batch = cluster(), "train.global_batch_size=48"
    times = {
        ranks: own("response_70b_to_8b+split", on, batch, f"teacher.split.ranks={ranks}").step_s
        for ranks in (8, 16, 24)
    }
    row = next(
        r
        for r in planned("response_70b_to_8b", on, batch)
        if r.label.startswith("split") and "bf16" in r.label
    )
    best = min(times, key=times.__getitem__)
    assert best == 24  # three quarters of a 70B to 8B step are the teacher's
    assert row.label == "split 24+8 bf16"
