"""Cluster files: what they take, and the one line when they do not."""

from pathlib import Path

import pytest

from ekd_nemo.config.cluster import PACKAGED_CLUSTERS, cluster_files, load_cluster
from ekd_nemo.errors import ConfigError

GOOD = """\
name: mine
slurm:
  partition: gpu
  options: {constraint: "h100&nvlink", exclusive: true}
container:
  image: /images/ekd.sqsh
  mounts: ["/data:/data:ro"]
nodes:
  count: 2
  devices_per_node: 8
  device: {name: X, memory_gib: 80, bf16_tflops: 1, memory_gb_s: 1, link_gb_s: 1, network_gb_s: 1, tdp_w: 2, idle_w: 1,
           source: s}
environment: {NCCL_DEBUG: INFO}
secrets: [HF_TOKEN]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    return path


def test_reads_a_cluster(file: Path) -> None:
    loaded = load_cluster(str(file))
    cluster = loaded.cluster
    assert cluster.world_size == 16
    assert cluster.slurm is not None
    assert cluster.slurm.options == {"constraint": "h100&nvlink", "exclusive": True}
    assert cluster.container is not None
    assert cluster.container.is_file
    assert loaded.place("slurm.partition") == f"{file}:3"
    assert loaded.place("power.pue") == str(file)


@pytest.mark.parametrize("name", ["h100", "a100", "rtx", "local"])
def test_the_packaged_ones_load(name: str) -> None:
    cluster = load_cluster(str(PACKAGED_CLUSTERS / f"{name}.yaml")).cluster
    assert cluster.name == name
    assert (cluster.slurm is None) == (name == "local")
    assert (cluster.nodes.device.fp8_tflops is not None) == (name == "h100")


BROKEN = [
    ("  partition: gpu\n", "", r"mine\.yaml:2: slurm\.partition is missing from slurm; its keys: "),
    ("partition: gpu", "partition: '-x y'", r"mine\.yaml:3: slurm\.partition is \"-x y\""),
    (
        "partition: gpu",
        'partition: gpu\n  time_limit: "00:05:00"',
        r"mine\.yaml:2: slurm: grace_s is 300 and time_limit 00:05:00: .*accepted: less than 300",
    ),
    (
        "partition: gpu",
        'partition: gpu\n  time_limit: "7-00:00:00"\n  grace_s: 65536',
        r"accepted: less than 65536",
    ),
    ("count: 2", "count: 0", r"mine\.yaml:9: nodes\.count is 0; "),
    (
        "exclusive: true",
        "nodes: 3",
        r"mine\.yaml:2: slurm: options\.nodes: accepted are long names",
    ),
    ("/data:/data:ro", "/data,/x:/y", r"mine\.yaml:5: container: mounts: '/data,/x:/y'; accepted"),
    (
        "/images/ekd.sqsh",
        "images/ekd.sqsh",
        r"mine\.yaml:5: container: image is 'images/ekd\.sqsh'; ",
    ),
    ("NCCL_DEBUG: INFO", "HF_TOKEN: abc", r"environment\.HF_TOKEN looks like a secret"),
    ("NCCL_DEBUG: INFO", '"A B": x', r"mine\.yaml:13: environment"),
    ("name: mine", "name: yours", r"mine\.yaml:1: name is yours; accepted: mine"),
    (
        "nodes:",
        "nodse:",
        r"mine\.yaml:8: nodse is not a key of the cluster file; did you mean nodes\?",
    ),
]


@pytest.mark.parametrize(("old", "new", "message"), BROKEN)
def test_refuses_in_one_line(file: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError, match=message) as caught:
        load_cluster(str(file))
    assert "\n" not in str(caught.value)
    assert "abc" not in str(caught.value)


def test_the_users_folder_hides_the_packaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slurm/clusters").mkdir(parents=True)
    (tmp_path / "slurm/clusters/h100.yaml").write_text(GOOD.replace("mine", "h100"))
    monkeypatch.chdir(tmp_path)
    assert cluster_files()["h100"] == Path("slurm/clusters/h100.yaml")
    assert load_cluster("h100").cluster.nodes.count == 2
    with pytest.raises(ConfigError, match="cluster h200 is not known; accepted: h100, a100"):
        load_cluster("h200")
    with pytest.raises(ConfigError, match=r"x\.yaml: no such file; known clusters: "):
        load_cluster("x.yaml")
