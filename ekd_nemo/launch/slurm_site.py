"""What can be known to be wrong with a place before anything is submitted to it: one line each."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ekd_nemo.config.cluster import LoadedCluster
from ekd_nemo.errors import EkdError, RunError, UserError
from ekd_nemo.launch.slurm_commands import call, require_commands
from ekd_nemo.launch.slurm_graph import Launch
from ekd_nemo.launch.slurm_mounts import check_mounted
from ekd_nemo.launch.slurm_text import mounts

MOUNTS: Final = Path("/proc/self/mounts")
# File systems of one machine. What is not named here (nfs4, lustre, gpfs, beegfs, weka, ceph, fuse...) may be shared.
LOCAL_KINDS: Final = frozenset(
    [
        "bcachefs",
        "btrfs",
        "ext2",
        "ext3",
        "ext4",
        "f2fs",
        "overlay",
        "ramfs",
        "reiserfs",
        "rootfs",
        "squashfs",
        "tmpfs",
        "vfat",
        "xfs",
        "zfs",
    ]
)


@dataclass(frozen=True)
class Mount:
    """A mounted file system."""

    point: Path
    kind: str


def read_mounts(path: Path = MOUNTS) -> list[Mount]:
    """What is mounted here, in the order of mounting."""
    found: list[Mount] = []
    for line in path.read_text().splitlines():
        _, point, kind, *_ = line.split(" ")
        found.append(Mount(Path(point.encode().decode("unicode_escape")), kind))
    return found


def mount_of(path: Path, mounted: Iterable[Mount]) -> Mount:
    """The file system that a path is on, or would be."""
    real = path.resolve()
    holding = [mount for mount in mounted if real.is_relative_to(mount.point)]
    return max(enumerate(holding), key=lambda each: (len(each[1].point.parts), each[0]))[1]


def check_site(launch: Launch, loaded: LoadedCluster) -> None:
    """Everything about this machine and its file systems that would fail later.

    Raises: UserError in one line, for the first thing that is wrong.
    """
    for problem in site_problems(launch, loaded):
        raise problem


def site_problems(launch: Launch, loaded: LoadedCluster) -> Iterable[EkdError]:
    """The same, one after another."""
    for check in (_check_paths, _check_shared, _check_image, _check_mounts):
        try:
            check(launch, loaded)
        except EkdError as error:
            yield error
    try:
        require_commands()
        _check_pyxis(loaded)
    except EkdError as error:
        yield error


def _check_paths(launch: Launch, loaded: LoadedCluster) -> None:
    """Slurm strips backslashes from the names of logs; pyxis' mounts cannot hold commas or colons."""
    for path in (launch.place.workdir, *launch.place.runs):
        text = str(path)
        if "\\" in text or not text.isprintable():
            raise UserError(
                f"{text!r}: Slurm takes no backslash and no control character in a log's path; accepted: another folder"
            )
        if launch.cluster.container is not None and ("," in text or ":" in text):
            raise UserError(
                f"{text}: a comma or colon cannot be mounted into a container; accepted: a path without"
            )


def _check_shared(launch: Launch, loaded: LoadedCluster) -> None:
    cluster = launch.cluster
    if cluster.shared or cluster.nodes.count == 1:
        return
    mounted = read_mounts()
    local = [*cluster.node_local, *([cluster.scratch] if cluster.scratch else [])]
    for path in dict.fromkeys(run.parent for run in launch.place.runs):
        below = next((each for each in local if path.resolve().is_relative_to(each)), None)
        if below is not None:
            raise UserError(
                f"{path}: lies below {below}, which {loaded.source} says is each node's own; "
                "accepted: a folder on a file system that all nodes share (runs, or --runs)"
            )
        mount = mount_of(path, mounted)
        if mount.kind in LOCAL_KINDS:
            raise UserError(
                f"{path}: is on {mount.point} ({mount.kind}), a disk of this machine alone; accepted: a folder "
                f"that all nodes share, or `shared: true` in {loaded.source} if they do share it"
            )


def _check_image(launch: Launch, loaded: LoadedCluster) -> None:
    container = launch.cluster.container
    if container is None or not container.is_file:
        return
    path = launch.place.workdir / container.image
    if not path.is_file() or not os.access(path, os.R_OK):
        raise UserError(
            f"{loaded.place('container.image')}: container.image: {container.image} is not there, or not to be read; "
            "accepted: a squashfs file (containers/README.md says how to make it)"
        )


def _check_mounts(launch: Launch, loaded: LoadedCluster) -> None:
    if launch.cluster.container is not None:
        seen = mounts(launch.cluster, launch.place)
        check_mounted(launch.plans[0].resolved, launch.place.workdir, seen)


def _check_pyxis(loaded: LoadedCluster) -> None:
    if loaded.cluster.container is None:
        return
    if "--container-image" not in call(["srun", "--help"]):
        raise RunError(
            f"{loaded.place('container')}: srun knows no --container-image here: pyxis is not installed; "
            "accepted: a cluster file without container, or a cluster with pyxis"
        )
