"""The cluster file: the machine that a recipe is planned for and launched on.

What it holds is the same for every recipe; what decides a result stays in the recipe. Secrets are named here, never
written: their values are read from the environment of whoever launches.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from ekd_nemo.config.base import Count, PositiveFloat, PositiveInt, Strict
from ekd_nemo.config.loader import KeyPath, load_document
from ekd_nemo.config.validation import validate
from ekd_nemo.errors import ConfigError

PACKAGED_CLUSTERS: Final = Path(__file__).parent.parent / "clusters"
SUFFIX: Final = ".yaml"
# Options of sbatch that the launcher writes itself, from the recipe and from the fields of this file.
OWN_OPTIONS: Final = {
    *("account", "array", "chdir", "dependency", "error", "export", "gpus-per-node", "gres"),
    *("job-name", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "parsable"),
    *("partition", "qos", "requeue", "signal", "time", "wrap"),
}
_SIGNAL_MAX_S: Final = 65536  # the first that sbatch's --signal does not take
_SECRET = re.compile(r"(^|_)(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)")
_MOUNT = re.compile(r"[^:,]+:/[^:,]*(:[\w+-]+)?")

# One word of a command's option: no blanks, no quotes, and no dash in front.
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_./:@+%=,\[\]-]+$", min_length=1)]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
TimeLimit = Annotated[str, Field(pattern=r"^(\d+-)?\d{1,2}:\d{2}:\d{2}$")]
OptionValue = bool | int | Annotated[str, Field(pattern=r"^[^\n\r\x00]*$")]


class Stated(Strict):
    """A figure that somebody gave, with its unit and where it comes from."""

    value: PositiveFloat
    unit: Annotated[str, Field(min_length=1)]
    source: Annotated[str, Field(min_length=1)]


class Slurm(Strict):
    """How jobs are asked for.

    Attributes:
        partition: where jobs go.
        account: who is charged; None leaves it to Slurm's default, as with `qos`.
        time_limit: of one attempt, `[D-]HH:MM:SS`; a longer run is requeued and goes on.
        grace_s: seconds before the limit at which ranks are told to save.
        mpi: srun's `--mpi`; None leaves srun's default. Some sites have no pmix.
        gres: name of the GPUs in `--gres`, as `gpu` or `gpu:h100`; None asks for none, where Slurm knows of no GPUs:
            of those that it knows, a step gets what its job asked for, not what came with a whole node (man srun).
        requeue: whether Slurm may start a job again after a node's failure or a preemption.
        max_restarts: how often one job may be started again; then it fails and `ekd recipe resume` goes on.
        heartbeat_s: how long a run may write no mark before its job is ended and the rank named; longer than loading
            the models, a checkpoint or a validation takes.
        options: further options of sbatch by their long names; `true` for one without value.
    """

    partition: Word
    account: Word | None = None
    qos: Word | None = None
    time_limit: TimeLimit = "24:00:00"
    grace_s: PositiveInt = 300
    mpi: Word | None = None
    gres: Word | None = "gpu"
    requeue: bool = True
    max_restarts: Count = 50
    heartbeat_s: PositiveInt = 1800
    options: dict[str, OptionValue] = Field(default_factory=dict[str, OptionValue])

    @model_validator(mode="after")
    def _there_is_time_before_the_grace(self) -> "Slurm":
        days, _, clock = self.time_limit.rpartition("-")
        hours, minutes, seconds = map(int, clock.split(":"))
        limit_s = ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
        if self.grace_s >= min(limit_s, _SIGNAL_MAX_S):
            raise ValueError(
                f"grace_s is {self.grace_s} and time_limit {self.time_limit}: an attempt would be told to save as it "
                f"begins; accepted: less than {min(limit_s, _SIGNAL_MAX_S)}"
            )
        return self

    @model_validator(mode="after")
    def _options_are_not_ours(self) -> "Slurm":
        for name in self.options:
            if name in OWN_OPTIONS or not re.fullmatch(r"[a-z][a-z0-9-]*", name):
                raise ValueError(
                    f"options.{name}: accepted are long names of sbatch without dashes in front, other than "
                    f"those that ekd sets: {', '.join(sorted(OWN_OPTIONS))}"
                )
        return self


class Container(Strict):
    """The image that ranks run in, by pyxis and enroot.

    Attributes:
        image: a squashfs file (a path that begins with `/` or `./`) or an image of a registry as enroot writes it,
            `nvcr.io#nvidia/nemo:TAG`.
        mounts: `SOURCE:TARGET[:FLAGS]`; the home folder is never mounted.
        writable: whether ranks may write into their copy of the image.
    """

    image: Annotated[str, Field(min_length=1)]
    mounts: tuple[str, ...] = ()
    writable: bool = False

    @property
    def is_file(self) -> bool:
        """Whether the image is a squashfs file rather than a registry's image, by pyxis' rule."""
        return self.image.startswith(("/", "./"))

    @model_validator(mode="after")
    def _plain_image_and_mounts(self) -> "Container":
        if not self.image.isprintable() or (
            self.image.endswith((".sqsh", ".squashfs")) and not self.is_file
        ):
            raise ValueError(
                f"image is {self.image!r}; a squashfs file is named by a path that begins with / or ./, "
                "an image of a registry as nvcr.io#nvidia/nemo:TAG"
            )
        for mount in self.mounts:
            if not mount.isprintable() or not _MOUNT.fullmatch(mount):
                raise ValueError(
                    f"mounts: {mount!r}; accepted: SOURCE:/TARGET or SOURCE:/TARGET:FLAGS, no commas"
                )
        return self


class Device(Strict):
    """One accelerator: what it holds, computes, moves and draws. Peaks are dense, without sparsity.

    Attributes:
        kind: `gpu`, or `cpu` for ranks that run on the host's processor.
        name: as its maker calls it.
        memory_gib: memory of one device.
        fp32_tflops: peak of matrix products in fp32 (TF32 on GPUs); None where it is not known.
        bf16_tflops: peak in BF16.
        fp8_tflops: peak in FP8; None: it has none, and FP8 is refused.
        memory_gb_s: bandwidth of its memory.
        link_gb_s: to the other devices of its node, each way (NVLink, or PCIe).
        network_gb_s: to other nodes, each way, its share of the node's adapters.
        tdp_w: power limit.
        idle_w: power without work.
        source: where these figures come from.
    """

    kind: Literal["gpu", "cpu"] = "gpu"
    name: Annotated[str, Field(min_length=1)]
    memory_gib: PositiveFloat
    fp32_tflops: PositiveFloat | None = None
    bf16_tflops: PositiveFloat
    fp8_tflops: PositiveFloat | None = None
    memory_gb_s: PositiveFloat
    link_gb_s: PositiveFloat
    network_gb_s: PositiveFloat
    tdp_w: PositiveFloat
    idle_w: PositiveFloat
    source: Annotated[str, Field(min_length=1)]


class Nodes(Strict):
    """The nodes that a job may take: alike, one rank on each device.

    Attributes:
        count: how many.
        devices_per_node: and thus ranks.
        cpus_per_node: as Slurm counts them (`CPUTot` of `scontrol show node`: threads, where cores have several); the
            ranks share them in order, so that all of them lie on the sockets of their boards.
        device: of each rank.
    """

    count: PositiveInt
    devices_per_node: PositiveInt
    cpus_per_node: PositiveInt | None = None
    device: Device


class Power(Strict):
    """What turns the devices' joules into a bill; each None unless it is given with its source."""

    pue: Stated | None = None  # total over IT power, unit 1
    grid_carbon: Stated | None = None  # g/kWh
    price: Stated | None = None  # currency/kWh


class Cluster(Strict):
    """One cluster.

    Attributes:
        name: as the file is called.
        slurm: None: this machine, without a scheduler.
        container: None: ranks run on the node itself.
        python: the interpreter of the ranks, inside the image if there is one.
        environment: variables that are set for the ranks; no secrets.
        secrets: names of variables that are passed on from the launcher's environment and written nowhere.
        runs: the folder of run directories; on a file system that all nodes share.
        shared: it is, although its file system is of a kind that one machine has for itself (ext4, xfs, ...).
        scratch: a folder on each node's own disk, for what may be lost.
        node_local: where nothing is shared; run directories below are refused, below `scratch` as well.
    """

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
    description: str = ""
    slurm: Slurm | None = None
    container: Container | None = None
    nodes: Nodes
    python: Annotated[str, Field(min_length=1)] = "python"
    environment: dict[VariableName, str] = Field(default_factory=dict[str, str])
    secrets: tuple[VariableName, ...] = ()
    runs: Annotated[str, Field(min_length=1)] = "runs"
    shared: bool = False
    scratch: str | None = None
    node_local: tuple[str, ...] = ("/tmp", "/var/tmp", "/dev/shm")
    power: Power = Power()

    @property
    def world_size(self) -> int:
        """Ranks on all nodes."""
        return self.nodes.count * self.nodes.devices_per_node

    @model_validator(mode="after")
    def _no_secrets_and_one_line(self) -> "Cluster":
        for name, value in self.environment.items():
            if _SECRET.search(name):
                raise ValueError(
                    f"environment.{name} looks like a secret; name it in secrets: [{name}], its value is taken "
                    "from the environment of the launch"
                )
            if not value.isprintable():
                raise ValueError(
                    f"environment.{name} holds a line break or control character; accepted: one line of text"
                )
        return self


@dataclass(frozen=True)
class LoadedCluster:
    """A cluster, its file, and the line of each of its keys."""

    cluster: Cluster
    source: Path
    lines: dict[KeyPath, int]

    def place(self, key: str) -> str:
        """Where a key stands, or the section around it, for messages: `slurm/clusters/x.yaml:12`."""
        parts = tuple(key.split("."))
        for length in range(len(parts), 0, -1):
            if parts[:length] in self.lines:
                return f"{self.source}:{self.lines[parts[:length]]}"
        return str(self.source)


def cluster_files(user: Path = Path("slurm/clusters")) -> dict[str, Path]:
    """Names and files of the known clusters: the user's ./slurm/clusters, then those that ship with ekd."""
    found: dict[str, Path] = {}
    for folder in (user, PACKAGED_CLUSTERS):
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            found.setdefault(path.stem, path)
    return found


def load_cluster(name: str) -> LoadedCluster:
    """Read and check a cluster file.

    Args:
        name: a path that ends in `.yaml`, or the name of a known cluster.
    Raises: ConfigError in one line, with file and line.
    """
    path = _find(name)
    document = load_document(path)

    def where(key: KeyPath) -> str:
        for length in range(len(key), 0, -1):
            if key[:length] in document.lines:
                return f"{path}:{document.lines[key[:length]]}"
        return str(path)

    cluster = validate(Cluster, document.data, where, "the cluster file")
    if cluster.name != path.stem:
        raise ConfigError(
            f"{where(('name',))}: name is {cluster.name}; accepted: {path.stem}, as the file is called"
        )
    return LoadedCluster(cluster, path, document.lines)


def _find(name: str) -> Path:
    known = cluster_files()
    if name.endswith(SUFFIX):
        if Path(name).is_file():
            return Path(name)
        raise ConfigError(f"{name}: no such file; known clusters: {', '.join(known)}")
    if name not in known:
        raise ConfigError(
            f"cluster {name} is not known; accepted: {', '.join(known)}, or the path of a .yaml file"
        )
    return known[name]
