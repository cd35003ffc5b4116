"""What Slurm's variables say, with texts as Slurm 22.05 writes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ekd_nemo.errors import LayoutError, RunError
from ekd_nemo.launch.slurm_env import expand_nodes, in_step, read_task
from ekd_nemo.launch.slurm_step import is_worker

STEP = {
    "SLURM_JOB_ID": "31",
    "SLURM_STEP_ID": "1",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "n[1-2]",
}


def test_a_task_in_torchs_words() -> None:
    task = read_task(STEP | {"SLURM_RESTART_COUNT": "2"})
    assert task.attempt == "31-2"
    assert task.torch_environment({}) == {
        "RANK": "5",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "8",
        "LOCAL_WORLD_SIZE": "4",
        "GROUP_RANK": "1",
        "MASTER_ADDR": "n1",
        "MASTER_PORT": "20031",
        "TORCHELASTIC_RUN_ID": "31-2",
    }
    given_by_script = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert given_by_script.items() <= task.torch_environment(given_by_script).items()


@pytest.mark.parametrize("missing", sorted(set(STEP) - {"SLURM_NTASKS"}))
def test_a_missing_variable_is_named(missing: str) -> None:
    with pytest.raises(RunError, match=f"{missing} is not set"):
        read_task({key: value for key, value in STEP.items() if key != missing})


def test_nodes_with_unlike_numbers_of_tasks_are_refused() -> None:
    with pytest.raises(LayoutError, match="4, 4, 2 tasks"):
        read_task(STEP | {"SLURM_STEP_TASKS_PER_NODE": "4(x2),2"})


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ("n1",)),
        ("n1,login2", ("n1", "login2")),
        ("n[1-3]", ("n1", "n2", "n3")),
        ("gpu[08-10,12]", ("gpu08", "gpu09", "gpu10", "gpu12")),
        ("r[1-2]n[1,3],x", ("r1n1", "r1n3", "r2n1", "r2n3", "x")),
        ("n[1-2].site.example", ("n1.site.example", "n2.site.example")),
    ],
)
def test_node_lists(text: str, names: tuple[str, ...]) -> None:
    assert expand_nodes(text) == names


@pytest.mark.parametrize("text", ["", "n[", "n[a-b]", "n[1-2", "n[]"])
def test_what_is_no_node_list_is_refused(text: str) -> None:
    with pytest.raises(RunError, match="no list of nodes"):
        expand_nodes(text)


@given(st.integers(0, 300), st.integers(0, 40), st.integers(1, 4))
def test_a_range_has_all_its_nodes(first: int, more: int, width: int) -> None:
    low, high = str(first).zfill(width), str(first + more).zfill(width)
    expected = tuple(f"n{str(number).zfill(width)}" for number in range(first, first + more + 1))
    assert expand_nodes(f"n[{low}-{high}]") == expected


@pytest.mark.parametrize(
    ("environ", "world_size", "expected"),
    [
        (STEP, None, True),
        (STEP, 8, True),
        (STEP, 16, False),  # somewhere in an allocation, meaning another job
        ({k: v for k, v in STEP.items() if k != "SLURM_STEP_ID"}, 8, False),  # a batch script
        ({}, None, False),
        ({"SLURM_STEP_ID": "x", "SLURM_PROCID": "0"}, None, False),
    ],
)
def test_who_is_a_worker(environ: dict[str, str], world_size: int | None, expected: bool) -> None:
    assert is_worker(environ, world_size) is expected
    assert in_step({}) is False
