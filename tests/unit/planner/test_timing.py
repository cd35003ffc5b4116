"""The time model: against published runs, and for the directions in which it must move."""

from dataclasses import replace
from pathlib import Path

import pytest

from ekd_nemo.config.cluster import PACKAGED_CLUSTERS, load_cluster
from ekd_nemo.planner.assumptions import OVERLAPPED, Assumptions
from ekd_nemo.planner.flops import mean_context
from ekd_nemo.planner.layout import Layout
from ekd_nemo.planner.timing import StepTime, Work, step_time
from tests.unit.planner.models import LLAMA_8B, LLAMA_70B
from tests.unit.planner.published import ROWS, Row

H100 = load_cluster(str(PACKAGED_CLUSTERS / "h100.yaml")).cluster.nodes.device
PLAIN = Work(LLAMA_8B, Layout(2, 1, 4, sequence_parallel=True), "bf16", 8192, 32, context=4096.0)


def planned(row: Row) -> float:
    """Tokens a second and GPU."""
    work = Work(
        row.arch,
        row.layout,
        row.precision,
        row.sequence,
        row.samples,
        context=mean_context([row.segment or row.sequence]),
        trained=row.trained,
    )
    seconds = step_time(work, H100, 8, OVERLAPPED).total
    return row.samples * row.sequence / seconds / row.layout.ranks


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.label)
def test_published_h100_runs_within_15_percent(row: Row) -> None:
    assert planned(row) == pytest.approx(row.tokens_per_s, rel=0.15)


def test_published_runs_on_average_within_5_percent() -> None:
    # One set of six efficiencies for all rows: no row may be bought at the cost of the others.
    errors = [abs(planned(row) / row.tokens_per_s - 1) for row in ROWS]
    assert sum(errors) / len(errors) < 0.05


def time(work: Work, a: Assumptions | None = None) -> StepTime:
    return step_time(work, H100, 8, a or Assumptions())


def test_parts_appear_where_their_cause_is() -> None:
    one = time(replace(PLAIN, layout=Layout(), samples=4))
    assert (one.tensor, one.pipeline, one.bubble, one.data) == (0, 0, 0, 0)
    cut = time(replace(PLAIN, layout=Layout(2, 2, 2, sequence_parallel=True)))
    assert min(cut.tensor, cut.pipeline, cut.bubble, cut.data) > 0
    teacher = time(replace(PLAIN, trained="none"))
    assert (teacher.optimizer, teacher.data, teacher.other) == (0, 0, 0)


def test_interleaving_divides_the_bubble() -> None:
    deep = replace(PLAIN, layout=Layout(2, 4, 1, sequence_parallel=True))
    chunked = replace(deep, layout=replace(deep.layout, virtual=4))
    free = Assumptions(pipeline_exposed=0.0)
    assert time(chunked, free).bubble == pytest.approx(time(deep, free).bubble / 4)


def test_the_network_is_slower_than_the_node() -> None:
    inside = time(replace(PLAIN, samples=4)).data
    outside = time(replace(PLAIN, layout=replace(PLAIN.layout, data=8), samples=8)).data
    # 7/8 of the bytes against 3/4, at a ninth of the speed.
    assert outside == pytest.approx(inside * (7 / 8) / (3 / 4) * 450 / 50)


def test_full_recomputation_costs_a_third_of_the_layers() -> None:
    free = Assumptions(bandwidth=1e9)
    plain = replace(PLAIN, head_share=0.0, context=0.0)
    ratio = time(replace(plain, recompute="full"), free).compute / time(plain, free).compute
    assert ratio == pytest.approx(4 / 3)


def test_fp8_is_faster_and_lora_cheaper_than_bf16_full_training() -> None:
    full, eight, lora = (
        time(replace(PLAIN, **change)).compute  # type: ignore[arg-type]
        for change in ({}, {"precision": "fp8"}, {"trained": "lora"})
    )
    assert full > eight
    assert full > lora > full / 2


def test_a_device_without_the_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="A100"):
        step_time(
            replace(PLAIN, precision="fp8"),
            load_cluster(str(PACKAGED_CLUSTERS / "a100.yaml")).cluster.nodes.device,
            8,
            Assumptions(),
        )


def test_a_70b_teacher_takes_three_quarters_of_a_bf16_step() -> None:
    teacher = Work(
        LLAMA_70B,
        Layout(8, 1, 1, sequence_parallel=True),
        "bf16",
        8192,
        32,
        trained="none",
        context=4096.0,
    )
    share = time(teacher).compute / (time(teacher).compute + time(PLAIN).compute)
    assert 0.68 < share < 0.78  # 2 * 70 of 2 * 70 + 6 * 8 GFLOP a token


def published_table() -> str:
    """The rows of slurm/PLANNER.md."""
    lines = [
        "| source | run | precision | GPUs | layout | samples | tokens | published | planned | off by |",
        "|---|---|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in ROWS:
        cut, found = row.layout, planned(row)
        layout = f"TP{cut.tensor} PP{cut.pipeline} VP{cut.virtual} CP{cut.context} DP{cut.data}"
        numbers = f"{cut.ranks} | {layout} | {row.samples} | {row.sequence} | {row.tokens_per_s:,.0f} | {found:,.0f}"
        off = f"{100 * (found / row.tokens_per_s - 1):+.1f} %"
        lines.append(f"| {row.source} | Llama 3 {row.name} | {row.precision} | {numbers} | {off} |")
    return "\n".join(lines) + "\n"


def test_the_written_table_is_the_computed_one() -> None:
    text = (Path(__file__).parents[3] / "slurm" / "PLANNER.md").read_text()
    assert published_table() in text
    errors = [abs(planned(row) / row.tokens_per_s - 1) for row in ROWS]
    assert f"the largest error is {100 * max(errors):.1f} %" in text
    assert f"the mean {100 * sum(errors) / len(errors):.1f} %" in text
