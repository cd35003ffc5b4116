"""A folder to launch from: a tiny pair, a recipe, and a cluster file for the local Slurm."""

import json
import sys
from pathlib import Path

from tests.tiny_model import make_tiny

RECIPE = """\
name: tiny
method: response
teacher: {path: models/the teacher, precision: fp32}
student:
  init: {source: random, path: models/the teacher}
  precision: fp32
data:
  path: data/it's "odd"
  build:
    sources: [{kind: jsonl, paths: [text.jsonl]}]
    tokenizer: models/the teacher
    sequence_length: 64
    validation_fraction: 0.2
objective: {alpha: 0.5, response: {}}
optimizer: {lr: 1e-2, warmup_steps: 1}
train:
  steps: 30
  global_batch_size: 4
  micro_batch_size: 2
  val_interval: 30
  val_samples: 4
  checkpoint_interval: 100
evaluation:
  lm: {tasks: [python_docs_last_word], limit: 4}
logging: {tensorboard: false}
energy: {meter: estimate}
"""
CLUSTER = """\
name: here
slurm:
  partition: batch
  time_limit: "00:10:00"
  grace_s: 30
  gres: null
  heartbeat_s: 600
container:
  image: "./image it's.sqsh"
nodes:
  count: 2
  devices_per_node: 1
  cpus_per_node: 1
  device:
    {kind: cpu, name: a core, memory_gib: 8, fp32_tflops: 0.05, bf16_tflops: 0.02,
     memory_gb_s: 10, link_gb_s: 2, network_gb_s: 1, tdp_w: 15, idle_w: 5, source: these tests}
environment:
  GLOO_SOCKET_IFNAME: lo
  HF_HUB_OFFLINE: "1"
  AWKWARD: it's "odd" $(touch nothing) `x`
secrets: [EKD_TEST_SECRET]
shared: true  # both nodes are this machine
"""


def make_project(folder: Path, teacher: Path) -> Path:
    """Write everything that a launch of `tiny` on the cluster `here` needs; gives the folder."""
    make_tiny(folder / "models" / "the teacher", teacher)
    (folder / "recipes").mkdir()
    (folder / "recipes" / "tiny.yaml").write_text(RECIPE)
    (folder / "slurm" / "clusters").mkdir(parents=True)
    cluster = CLUSTER + f"python: {json.dumps(sys.executable)}\n"
    (folder / "slurm" / "clusters" / "here.yaml").write_text(cluster)
    (folder / "image it's.sqsh").write_bytes(b"hsqs")
    lines = [
        json.dumps({"text": f"{number}: " + "the quick brown fox " * 12}) for number in range(80)
    ]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
    return folder
