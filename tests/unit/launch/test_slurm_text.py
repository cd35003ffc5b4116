"""The sbatch texts: whole, against golden files, and with hostile values through a real bash."""

import os
import subprocess
import time
from functools import cache
from pathlib import Path

import pytest

from ekd_nemo.config.cluster import Cluster, load_cluster
from ekd_nemo.config.resolve import resolve_recipe
from ekd_nemo.launch.slurm import describe
from ekd_nemo.launch.slurm_graph import Launch, parts_of, plan_cluster
from ekd_nemo.launch.slurm_text import Part, Place, directive, sbatch_text

GOLDEN = Path(__file__).parents[2] / "golden" / "slurm"
# One of each method, and each placement; on H100 nodes but for one on A100.
LAUNCHES = {
    "sft_8b": "h100",
    "response_70b_to_8b+cached": "h100",
    "feature_70b_to_8b": "h100",
    "relation_72b_to_7b": "a100",
    "combined_70b_to_8b+split": "h100",
}


def launch_of(recipe: str, cluster: str, **options: int) -> Launch:
    """A launch from a folder, into a folder and under a name that are the same everywhere."""
    return plan_cluster(
        resolve_recipe(recipe),
        load_cluster(cluster),
        workdir=Path("/home/you/distil"),
        runs=Path("/shared/runs"),
        run_id="golden",
        **options,
    )


def texts_of(recipe: str, cluster: str) -> str:
    launch = launch_of(recipe, cluster)
    parts = parts_of(launch)
    heads = [f"==> {part.name}, after {' '.join(part.after) or 'nothing'} <==" for part in parts]
    bodies = [sbatch_text(part, launch.cluster, launch.place) for part in parts]
    return "\n".join(f"{head}\n{body}" for head, body in zip(heads, bodies, strict=True))


@pytest.mark.parametrize(("recipe", "cluster"), LAUNCHES.items())
def test_the_texts_are_the_golden_ones(
    recipe: str, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m tests.unit.launch.test_slurm_text` writes them anew; read the difference before you keep it."""
    monkeypatch.chdir(tmp_path)
    assert texts_of(recipe, cluster) == (GOLDEN / f"{recipe}.txt").read_text()


def test_a_dry_run_of_512_ranks_takes_about_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load_cluster("h100")
    text = loaded.source.read_text().replace("count: 4", "count: 64")
    (tmp_path / "h100.yaml").write_text(text)
    override = ["train.global_batch_size=512", "train.val_samples=512"]
    began_s = time.process_time()
    loaded = load_cluster("h100.yaml")
    launch = plan_cluster(
        resolve_recipe("feature_70b_to_8b", override), loaded, workdir=tmp_path, repeats=5
    )
    shown = describe(launch, loaded)
    took_s = time.process_time() - began_s
    assert launch.ranks == 512
    assert "#SBATCH --nodes=64" in shown
    assert took_s < 1, "processor time; the start of Python and Typer adds 0.3 s"


HOSTILE = [
    "plain",
    "two words",
    "it's",
    'say "hi"',
    "$(touch owned)",
    "`touch owned`",
    "a;b&c|d>e<f",
    "-dash",
    "#hash",
    "100%j",
    "über ñ 漢",
    "*?[x]{a,b}",
    "~",
    "!bang",
    "$HOME",
]


@cache
def device() -> dict[str, object]:
    return load_cluster("local").cluster.nodes.device.model_dump()


def cluster_with(value: str) -> Cluster:
    """A cluster in which everything that may hold a free text holds this one."""
    return Cluster.model_validate(
        {
            "name": "odd",
            "slurm": {"partition": "p", "gres": None, "options": {"comment": value}},
            "container": {"image": f"/images/{value}.sqsh"},
            "nodes": {
                "count": 1,
                "devices_per_node": 1,
                "device": device(),
            },
            "python": f"/opt/{value}/python",
            "environment": {"ODD": value},
        }
    )


SRUN = """#!/bin/bash
printf '%s\\0' "$ODD" "$PWD" "$@" >"$SEEN"
"""


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_values_pass_through_bash_unharmed(value: str, tmp_path: Path) -> None:
    work, tools, seen = tmp_path / value.replace("/", "_"), tmp_path / "bin", tmp_path / "seen"
    work.mkdir()
    tools.mkdir()
    (tools / "srun").write_text(SRUN)
    (tools / "srun").chmod(0o755)
    run = work / "runs" / value
    arguments = ("-m", "x", "--run", str(run), value)
    part = Part("export", f"exporting to {run}", (arguments,))
    cluster = cluster_with(value)
    text = sbatch_text(part, cluster, Place(work, (run,), value))
    done = subprocess.run(
        ["bash", "-s"],
        input=text,
        text=True,
        env={
            "PATH": f"{tools}:{os.environ['PATH']}",
            "SEEN": str(seen),
            "HOME": "/root",
            "SLURM_JOB_ID": "1",
        },
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    odd, cwd, *argv = seen.read_text().removesuffix("\0").split("\0")
    assert argv[-6:] == [cluster.python, *arguments]
    assert (odd, cwd) == (value, str(work))
    assert f"--container-image=/images/{value}.sqsh" in argv
    assert f"--container-workdir={work}" in argv
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([work.name, "bin", "seen"])


def run_script(
    folder: Path, part: Part, srun: str, restarts: int = 0
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """A part's script in bash, its commands of Slurm replaced; gives what scontrol was asked for too."""
    tools, asked = folder / "bin", folder / "asked"
    tools.mkdir()
    bodies = {
        "srun": srun,
        "scancel": "",
        "scontrol": f'case "$1" in requeue) echo "$@" >>{asked}; kill -TERM $PPID ;; *) echo n1 ;; esac',
    }
    for name, body in bodies.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    run = folder / "run"
    (run / "logs" / "slurm").mkdir(parents=True)
    done = subprocess.run(
        ["bash", "-s"],
        input=sbatch_text(part, cluster_with("x"), Place(folder, (run,), "n")),
        text=True,
        env={
            "PATH": f"{tools}:{os.environ['PATH']}",
            "HOME": "/root",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n1",
            "SLURM_RESTART_COUNT": str(restarts),
        },
        capture_output=True,
        check=False,
        timeout=120,
    )
    return done, asked.read_text().splitlines() if asked.is_file() else []


SINGLE = Part("export", "x", (("-m", "x"),))
RANKS = Part("train", "x", (("-m", "x"),), ranks=1)
# The samplers say that they are ready and stay; the ranks end with $CODE.
STEPS = """case "$*" in
  *slurm_node*) echo "1 1" >run/logs/slurm/ready-7-${SLURM_RESTART_COUNT}; exec sleep 1 ;;
  *) exit CODE ;;
esac"""
TOLD_TO_END = [75, 138, 143]


@pytest.mark.parametrize("code", [0, 1, 2, 137, *TOLD_TO_END])
def test_a_part_that_was_told_to_end_is_requeued_and_no_other(code: int, tmp_path: Path) -> None:
    done, asked = run_script(tmp_path, SINGLE, f"exit {code}")
    if code in TOLD_TO_END:
        assert asked == ["requeue 7"]
        assert done.stdout == "this part was told to end, what is finished is kept: requeued\n"
    else:
        assert (asked, done.returncode) == ([], code)


@pytest.mark.parametrize("code", [1, *TOLD_TO_END])
def test_ranks_that_were_told_to_end_are_requeued(code: int, tmp_path: Path) -> None:
    done, asked = run_script(tmp_path, RANKS, STEPS.replace("CODE", str(code)))
    if code in TOLD_TO_END:
        assert asked == ["requeue 7"]
        assert "attempt 1 of this run has ended, its state is kept: requeued" in done.stdout
    else:
        assert (asked, done.returncode) == ([], code)
        assert f"error: training failed with exit code {code}" in done.stderr


def test_samplers_told_to_end_before_the_ranks_began_are_no_failure(tmp_path: Path) -> None:
    done, asked = run_script(tmp_path, RANKS, "exit 143")
    assert asked == ["requeue 7"]
    assert "told to end before the ranks began: requeued" in done.stdout


def test_a_part_is_not_started_for_ever(tmp_path: Path) -> None:
    done, asked = run_script(tmp_path, SINGLE, "exit 75", restarts=50)
    assert (asked, done.returncode) == ([], 75)
    assert "restarted 50 times already; to go on: ekd recipe resume RUN" in done.stderr


@pytest.mark.parametrize("value", HOSTILE)
def test_each_directive_is_one_line(value: str) -> None:
    text = sbatch_text(
        Part("export", "x", (("-m", "x"),)),
        cluster_with(value),
        Place(Path("/w"), (Path("/r"),), value),
    )
    directives = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert directive("comment", value) in directives
    assert directive("job-name", f"{value}.export") in directives


def test_a_backslash_is_doubled_for_sbatch() -> None:
    assert directive("comment", "a\\b") == r"#SBATCH --comment='a\\b'"
    assert directive("requeue") == "#SBATCH --requeue"
    assert directive("nodes", 4) == "#SBATCH --nodes=4"


def test_percent_signs_of_the_run_are_no_pattern() -> None:
    text = sbatch_text(
        Part("export", "x", (("-m", "x"),)),
        cluster_with("x"),
        Place(Path("/w"), (Path("/runs/50%j"),), "n"),
    )
    assert "#SBATCH --output=/runs/50%%j/logs/slurm/export-%j.log" in text.splitlines()


def test_secrets_are_named_and_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hush-hush")
    launch = launch_of("sft_8b", "h100")
    for part in parts_of(launch):
        text = sbatch_text(part, launch.cluster, launch.place)
        assert "hush" not in text
        assert "HF_TOKEN" in next(line for line in text.splitlines() if "--export=HOME" in line)


def test_every_text_is_bash() -> None:
    launch = launch_of("sft_8b", "h100")
    for part in parts_of(launch):
        text = sbatch_text(part, launch.cluster, launch.place)
        done = subprocess.run(
            ["bash", "-n"], input=text, text=True, capture_output=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, where in LAUNCHES.items():
        (GOLDEN / f"{name}.txt").write_text(texts_of(name, where))
