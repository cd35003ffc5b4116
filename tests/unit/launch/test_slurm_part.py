"""Parts of a launch as single jobs: the building of shards, with small processes and the real sampler."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ekd_nemo.config.resolve import ResolvedRecipe
from ekd_nemo.errors import RunError
from ekd_nemo.launch.plan import Plan, Step, plan_launch
from ekd_nemo.launch.slurm_part import run_part
from ekd_nemo.launch.slurm_run import make_run
from ekd_nemo.metrics.energy import run_energy
from ekd_nemo.metrics.ledger import ledger_of_run
from ekd_nemo.records.identity import read_identity
from ekd_nemo.records.rundir import RunDir


def builds(code: str) -> Step:
    return Step("data", "builds shards", (sys.executable, "-c", code), products=(Path("shards"),))


@pytest.fixture
def plan(tiny: ResolvedRecipe) -> Plan:
    plan = plan_launch(tiny, RunDir(Path("runs") / "tiny-s1234"), 1)
    make_run(plan.run, plan.recipe)
    return replace(
        plan,
        preparation=(
            builds("import time, pathlib; time.sleep(1.2); pathlib.Path('shards').touch()"),
        ),
    )


def metered_by(plan: Plan, meter: str) -> Plan:
    energy = plan.recipe.energy.model_copy(update={"meter": meter})
    recipe = plan.recipe.model_copy(update={"energy": energy})
    plan.run.run_json.unlink()
    make_run(plan.run, recipe)
    return replace(plan, resolved=replace(plan.resolved, recipe=recipe))


@pytest.mark.parametrize(
    ("host_only", "meter", "role"),
    [
        (False, "estimate", "accelerator"),
        (True, "auto", "host"),
        (True, "estimate", "accelerator"),  # which the recipe takes for one everywhere
    ],
)
def test_building_shards_is_metered_as_an_attempt_of_its_own(
    plan: Plan, host_only: bool, meter: str, role: str
) -> None:
    assert run_part(metered_by(plan, meter), "data", host_only=host_only) == 0
    (attempt,) = read_identity(plan.run).attempts
    assert attempt.world_size is None
    assert attempt.devices
    ledger = ledger_of_run(plan.run)
    rows = [row for row in ledger.rows if row.phase == "preprocess"]
    assert {row.role for row in rows} == {role}
    assert sum(row.duration_s for row in rows) >= 1.2
    found = run_energy(ledger)
    spent, other = (found.host, found.e_run) if role == "host" else (found.e_run, found.host)
    assert spent.value is not None and spent.value > 0
    assert other.value is None


def test_a_build_that_failed_and_was_tried_again_keeps_both_records(plan: Plan) -> None:
    broken = replace(plan, preparation=(builds("import sys; sys.exit('error: no text')"),))
    with pytest.raises(RunError, match=r"data failed: .*no text \(log: "):
        run_part(broken, "data")
    run_part(plan, "data")
    assert [attempt.attempt for attempt in read_identity(plan.run).attempts] == [1, 2]
    rows = [row for row in ledger_of_run(plan.run).rows if row.phase == "preprocess"]
    assert {row.attempt for row in rows} == {1, 2}
    assert not any(row.lost for row in rows)
