"""The graph of jobs, what is refused before anything is submitted, and jobs.json."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from ekd_nemo.config.cluster import LoadedCluster, load_cluster
from ekd_nemo.config.resolve import ResolvedRecipe, resolve_recipe
from ekd_nemo.errors import ConfigError, EkdError, LayoutError, RunDirError, UserError
from ekd_nemo.launch import slurm, slurm_site
from ekd_nemo.launch.history import note_finished
from ekd_nemo.launch.slurm import describe, launch_cluster, stored_launch
from ekd_nemo.launch.slurm_commands import JobState
from ekd_nemo.launch.slurm_graph import Launch, parts_of, plan_cluster
from ekd_nemo.launch.slurm_jobs import Job, JobsFile, read_jobs, write_jobs
from ekd_nemo.launch.slurm_run import make_run
from ekd_nemo.launch.slurm_site import Mount, mount_of, read_mounts, site_problems
from ekd_nemo.records.identity import read_identity
from ekd_nemo.records.rundir import RunDir

CLUSTER = {
    "name": "c",
    "slurm": {"partition": "p", "gres": None},
    "nodes": {
        "count": 2,
        "devices_per_node": 2,
        "device": {
            **{
                "kind": "cpu",
                "name": "core",
                "memory_gib": 8,
                "fp32_tflops": 0.1,
                "bf16_tflops": 0.1,
                "memory_gb_s": 1,
            },
            **{"link_gb_s": 1, "network_gb_s": 1, "tdp_w": 10, "idle_w": 1, "source": "test"},
        },
    },
    "power": {"pue": {"value": 1.2, "unit": "1", "source": "a test"}},
}


def cluster(folder: Path, **changes: object) -> LoadedCluster:
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump({**CLUSTER, **changes}))
    return load_cluster(str(path))


def plan(recipe: ResolvedRecipe, loaded: LoadedCluster, **options: object) -> Launch:
    return plan_cluster(recipe, loaded, workdir=Path.cwd(), **options)  # type: ignore[arg-type]


def test_each_part_comes_after_the_one_before(here: Path) -> None:
    launch = plan(resolve_recipe("tiny", ["evaluation.lm.tasks=[t]"]), cluster(here))
    parts = parts_of(launch)
    assert [(part.name, part.after) for part in parts] == [
        ("data", ()),
        ("train", ("data",)),
        ("export", ("train",)),
        ("eval", ("export",)),
        ("summarise", ("eval",)),
    ]
    train = parts[1]
    assert (train.nodes, train.ranks) == (2, 4)
    rest = parts_of(launch, {"export": [0], "summarise": [0]})
    assert [(part.name, part.after) for part in rest] == [
        ("export", ()),
        ("summarise", ("export",)),
    ]


@pytest.mark.parametrize(("gres", "told"), [(None, False), ("gpu", True)])
def test_a_job_that_builds_shards_is_told_that_it_holds_no_gpu(
    here: Path, gres: str | None, told: bool
) -> None:
    loaded = cluster(here, slurm={"partition": "p", "gres": gres})
    parts = parts_of(plan(resolve_recipe("tiny", []), loaded))
    assert {part.name: "--host-only" in part.arguments[0] for part in parts} == {
        **dict.fromkeys(("train", "export", "summarise"), False),
        "data": told,
    }


def test_repeats_are_an_array_with_seeds_counted_up(tiny: ResolvedRecipe, here: Path) -> None:
    launch = plan(tiny, cluster(here), repeats=3)
    assert [each.recipe.seed for each in launch.plans] == [1234, 1235, 1236]
    assert len({run.path for run in launch.runs}) == 3
    counts = {part.name: len(part.arguments) for part in parts_of(launch)}
    assert counts == {"data": 1, "train": 3, "export": 3, "summarise": 1}
    assert launch.place.name == launch.runs[0].run_id.removesuffix("-s1234")


def test_repeats_evaluate_in_turn_so_that_one_evaluates_the_teacher_for_all(here: Path) -> None:
    launch = plan(resolve_recipe("tiny", ["evaluation.lm.tasks=[t]"]), cluster(here), repeats=3)
    arrays = {part.name: part.array for part in parts_of(launch)}
    assert arrays["eval"] == "0-2%1"
    assert arrays["export"] == "0-2"
    missing = parts_of(launch, {"eval": [1, 2]})
    assert [part.array for part in missing] == ["1,2%1"]


def test_what_repeats_have_finished_is_not_submitted_again(
    tiny: ResolvedRecipe, here: Path
) -> None:
    launch = plan(tiny, cluster(here), repeats=3)
    for each in launch.plans:
        make_run(each.run, each.recipe, launch.cluster)
    done = launch.plans[1]
    for step in done.steps:
        for product in step.products:
            product.mkdir(parents=True)
        note_finished(done.run, step, 1, 1.0)
    wanted = slurm._wanted(launch.plans)
    assert wanted == {"data": [0, 1, 2], "train": [0, 2], "export": [0, 2], "summarise": [0]}
    assert {part.name: part.array for part in parts_of(launch, wanted)} == {
        "data": None,
        "train": "0,2",
        "export": "0,2",
        "summarise": None,
    }
    assert {part.array for part in parts_of(launch)} == {None, "0-2"}


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"slurm": None}, {}, r"c\.yaml: this cluster has no section slurm"),
        (
            {},
            {"nproc": 3},
            r"--nproc 3 leaves a node partly empty; accepted: up to 2, or multiples of 2",
        ),
        ({}, {"nproc": 6}, r"--nproc 6: .*c\.yaml has 4 devices"),
    ],
)
def test_what_does_not_fit_the_cluster(
    here: Path, changes: dict[str, object], options: dict[str, object], message: str
) -> None:
    recipe = resolve_recipe("tiny", ["train.global_batch_size=12"])
    with pytest.raises((ConfigError, LayoutError), match=message):
        plan(recipe, cluster(here, **changes), **options)


def test_a_world_size_that_no_layout_fits_names_the_cluster_file(here: Path) -> None:
    recipe = resolve_recipe("tiny", ["student.parallel.pipeline=3"])
    with pytest.raises(
        LayoutError,
        match=r"c\.yaml:\d+: 2 nodes of 2 devices: ranks 4: one copy of the student takes .* take fewer with --nproc",
    ):
        plan(recipe, cluster(here))


def test_a_cluster_without_partition_is_one_line(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"c\.yaml:\d+: slurm\.partition.*"):
        cluster(here, slurm={"account": "me"})


def test_a_node_local_folder_is_refused(tiny: ResolvedRecipe, here: Path) -> None:
    loaded = cluster(here, node_local=[str(here)])
    problems = [str(each) for each in site_problems(plan(tiny, loaded), loaded)]
    assert any("which " in each and "is each node's own" in each for each in problems)


@pytest.mark.parametrize(
    ("kind", "refused"),
    [("ext4", True), ("tmpfs", True), ("overlay", True), ("lustre", False), ("nfs4", False)],
)
def test_a_disk_of_one_machine_is_refused(
    tiny: ResolvedRecipe, here: Path, monkeypatch: pytest.MonkeyPatch, kind: str, refused: bool
) -> None:
    mounted = [Mount(Path("/"), "ext4"), Mount(here.resolve(), kind)]
    monkeypatch.setattr(slurm_site, "read_mounts", lambda: mounted)
    for changes, expected in (
        ({"node_local": []}, refused),
        ({"node_local": [], "shared": True}, False),
        ({"node_local": [], "nodes": {**CLUSTER["nodes"], "count": 1}}, False),  # type: ignore[dict-item]
    ):
        loaded = cluster(here, **changes)
        problems = [str(each) for each in site_problems(plan(tiny, loaded, nproc=2), loaded)]
        assert any("a disk of this machine alone" in each for each in problems) is expected


def test_the_innermost_and_newest_mount_counts(tmp_path: Path) -> None:
    mounted = [Mount(Path("/"), "ext4"), Mount(tmp_path, "nfs4"), Mount(tmp_path, "tmpfs")]
    assert mount_of(tmp_path / "not" / "there", mounted).kind == "tmpfs"
    assert mount_of(Path("/elsewhere"), mounted).kind == "ext4"


def test_mounts_are_read_with_their_escapes(tmp_path: Path) -> None:
    (tmp_path / "mounts").write_text("dev / ext4 rw 0 0\nsrv:/x /a\\040b nfs4 rw 0 0\n")
    assert read_mounts(tmp_path / "mounts")[1] == Mount(Path("/a b"), "nfs4")


def test_an_image_that_is_not_there_is_refused_with_its_line(
    tiny: ResolvedRecipe, here: Path
) -> None:
    loaded = cluster(here, container={"image": "./not here.sqsh"}, shared=True)
    problems = [str(each) for each in site_problems(plan(tiny, loaded), loaded)]
    assert any("container.image: ./not here.sqsh is not there" in each for each in problems)
    (here / "not here.sqsh").write_bytes(b"hsqs")
    problems = [str(each) for each in site_problems(plan(tiny, loaded), loaded)]
    assert not any("container.image" in each for each in problems)


def test_what_the_container_does_not_see_is_refused_with_its_line(
    here: Path, tmp_path: Path
) -> None:
    """A folder beside the working folder, then behind a link in it; mounted, it is seen."""
    other = tmp_path / "other"
    (here / "models").rename(other)
    (here / "models").symlink_to(other)
    image = {"image": "nvcr.io#nvidia/nemo:25.11"}

    def refusals(mounts: list[str], *given: str) -> list[str]:
        loaded = cluster(here, container={**image, "mounts": mounts}, shared=True)
        launch = plan(resolve_recipe("tiny", given), loaded)
        return [str(each) for each in site_problems(launch, loaded) if "does not see" in str(each)]

    direct = f"teacher.path={other}/the teacher"
    (line,) = refusals([], direct)
    assert line.startswith(f"--set {direct}: teacher.path: {other}/the teacher: the container")
    (line,) = refusals([])
    assert f"models/the teacher, a link to {other}/the teacher: the container does not" in line
    assert refusals([f"{other}:{other}:ro"]) == []
    assert refusals([f"{other}:{other}:ro"], direct) == []
    assert refusals([f"{other}:/models"], "teacher.path=/models/the teacher")[0].startswith(
        str(Path("recipes") / "tiny.yaml")
    ), "the tokenizer's link is still not seen"
    assert refusals([], "data.path=/elsewhere/shards") != []


@pytest.mark.parametrize("name", ["a:b", "a,b"])
def test_paths_that_cannot_be_mounted_are_refused(
    tiny: ResolvedRecipe, here: Path, name: str
) -> None:
    loaded = cluster(here, container={"image": "nvcr.io#nvidia/nemo:25.09"}, shared=True)
    problems = [str(each) for each in site_problems(plan(tiny, loaded, runs=Path(name)), loaded)]
    assert any("a comma or colon cannot be mounted" in each for each in problems)


def test_a_backslash_in_the_run_folder_is_refused(tiny: ResolvedRecipe, here: Path) -> None:
    loaded = cluster(here, shared=True)
    problems = [str(each) for each in site_problems(plan(tiny, loaded, runs=Path("a\\b")), loaded)]
    assert any("Slurm takes no backslash" in each for each in problems)


def test_nothing_is_made_when_anything_is_wrong(
    tiny: ResolvedRecipe, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = cluster(here, shared=True)
    before = sorted(path.name for path in here.iterdir())
    monkeypatch.setenv("PATH", str(here))
    with pytest.raises(UserError, match="sbatch is not on PATH"):
        launch_cluster(plan(tiny, loaded), loaded, print)
    assert sorted(path.name for path in here.iterdir()) == before


def test_of_two_launches_at_once_one_submits(
    tiny: ResolvedRecipe, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second begins while sbatch has the first part, before jobs.json says so."""
    loaded = cluster(here, shared=True)
    submitted: list[str] = []

    def submit(script: Path, after: Sequence[str]) -> str:
        if not submitted:
            with pytest.raises(
                RunDirError, match=r"another launch \(process \d+ on .*\.submitting"
            ):
                launch_cluster(plan(tiny, loaded), loaded, print)
        submitted.append(script.stem)
        return str(len(submitted))

    def nothing(*_: object) -> list[JobState]:
        return []

    monkeypatch.setattr(slurm, "check_site", nothing)
    monkeypatch.setattr(slurm, "job_states", nothing)
    monkeypatch.setattr(slurm, "submit", submit)
    launch_cluster(plan(tiny, loaded), loaded, print)
    assert submitted == ["data", "train", "export", "summarise"]
    assert not list(here.rglob(".submitting"))


def test_a_dry_run_says_what_would_be_refused_here(tiny: ResolvedRecipe, here: Path) -> None:
    loaded = cluster(here, container={"image": "./x.sqsh"}, shared=True)
    shown = describe(plan(tiny, loaded), loaded)
    assert "would be refused here: " in shown
    assert "--- train.sbatch\n#!/bin/bash\n" in shown
    assert "'--dependency=afterok:<data>'" in shown


def jobs_of(launch: Launch) -> JobsFile:
    return JobsFile(
        name=launch.place.name,
        workdir=str(launch.place.workdir),
        runs=tuple(str(run.path) for run in launch.runs),
        ranks=launch.ranks,
        cluster=launch.cluster,
    )


def test_a_stored_launch_is_the_same_launch(tiny: ResolvedRecipe, here: Path) -> None:
    launch = plan(tiny, cluster(here), repeats=2)
    for each in launch.plans:
        make_run(each.run, each.recipe, launch.cluster)
    job = Job(part="train", job_id="7", tasks=2, after=(), script="x")
    write_jobs(jobs_of(launch).with_submission([job], first=True))
    for run in launch.runs:
        again = stored_launch(run)
        assert again.place == launch.place
        assert again.cluster == launch.cluster
        assert parts_of(again) == parts_of(launch)
        assert read_jobs(run).jobs == (job,)
    assert read_identity(launch.runs[0]).factors.pue is not None
    assert read_identity(launch.runs[0]).attempts == ()


@pytest.mark.parametrize("text", ["", "{}", '{"schema_version": 1}', "[]", "null"])
def test_a_broken_jobs_file_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "jobs.json").write_text(text)
    with pytest.raises(RunDirError, match=r"jobs\.json: not what a launch writes") as error:
        read_jobs(RunDir(tmp_path))
    assert "\n" not in str(error.value)


def test_a_run_without_jobs_says_so(tmp_path: Path) -> None:
    with pytest.raises(
        EkdError, match=r"no jobs\.json: this is no run that was launched on a cluster"
    ):
        read_jobs(RunDir(tmp_path))
