"""Steps of the smoke pair whose memory is counted, and what the planner says of them; nothing heavy is imported."""

from collections.abc import Mapping

from ekd_nemo.config.architecture import Architecture
from ekd_nemo.config.cluster import PACKAGED_CLUSTERS, load_cluster
from ekd_nemo.config.recipe import Recipe
from ekd_nemo.config.resolve import PACKAGED_RECIPES, resolve_recipe
from ekd_nemo.planner.assumptions import Assumptions
from ekd_nemo.planner.devices import device_memory
from ekd_nemo.planner.memory import Memory
from ekd_nemo.planner.scenario import Models, scenario

# SmolLM2-135M and a student of 8 of its 30 layers, as the smoke recipes have them.
TEACHER = Architecture(
    family="llama",
    num_layers=30,
    hidden_size=576,
    ffn_size=1536,
    num_heads=9,
    num_kv_groups=3,
    head_dim=64,
    vocab_size=49152,
    rope_theta=100000.0,
    rope_scaling=None,
    norm_eps=1e-5,
    tied_embeddings=True,
    qkv_bias=False,
    max_positions=8192,
    initializer_range=0.04,
)
STUDENT = TEACHER.with_layers(8)
LENGTH = 240  # the smoke recipes' 256, made divisible by three tensor ranks
Case = tuple[str, tuple[str, ...]]
TP3 = "student.parallel.tensor=3"
SP = "student.parallel.sequence_parallel=true"
BF16 = ("student.precision=bf16", "teacher.precision=bf16")
PP2 = "student.parallel.pipeline=2"
# Ranks, and the recipe with what is set in it. The first is quick enough for every day.
CASES: dict[str, tuple[int, Case]] = {
    "shared, PP 2": (2, ("smoke_response", (PP2,))),
    "no teacher": (1, ("smoke_sft", ())),
    "shared": (1, ("smoke_response", ())),
    "shared, microbatches of 1": (1, ("smoke_response", ("train.micro_batch_size=1",))),
    "shared, selective": (1, ("smoke_response", ("student.recompute=selective",))),
    "shared, full": (1, ("smoke_response", ("student.recompute=full",))),
    "shared, combined losses": (1, ("smoke_combined", ())),
    "shared, DP 2": (2, ("smoke_response", ())),
    "shared, TP 3": (3, ("smoke_response", (TP3,))),
    "shared, TP 3, SP": (3, ("smoke_response", (TP3, SP))),
    "relaid, DP 2, teacher PP 2": (2, ("smoke_response", ("teacher.parallel.pipeline=2",))),
    "relaid, TP 3, SP, teacher PP 3": (
        3,
        ("smoke_response", (TP3, SP, "teacher.parallel.pipeline=3")),
    ),
    "cached, hidden, PP 2": (2, ("smoke_feature_cached", (PP2,))),
    "cached, top-k": (1, ("smoke_response_cached", ())),
    "cached, top-k, TP 3, SP": (3, ("smoke_response_cached", (TP3, SP))),
    "split 1+1": (2, ("smoke_response_split", ())),
    "split 2+1, PP 2": (3, ("smoke_response_split", (PP2, "teacher.parallel.pipeline=1"))),
    "shared, PP 2 interleaved": (
        2,
        (
            "smoke_response",
            (PP2, "student.parallel.virtual_pipeline=2", "train.micro_batch_size=1"),
        ),
    ),
    "shared, PP 2, full": (2, ("smoke_response", (PP2, "student.recompute=full"))),
    "relaid, PP 2, teacher DP 2": (2, ("smoke_response", (PP2, "teacher.parallel.pipeline=1"))),
    "split 1+2": (
        3,
        ("smoke_response_split", ("teacher.split.ranks=2", "teacher.parallel.pipeline=2")),
    ),
    "shared, bf16": (1, ("smoke_response", BF16)),
    "shared, TP 3, SP, full": (3, ("smoke_response", (TP3, SP, "student.recompute=full"))),
}
QUICK = "shared, PP 2"


def planned(case: Case, ranks: int) -> dict[str, Memory]:
    cluster = load_cluster(str(PACKAGED_CLUSTERS / "local.yaml")).cluster
    models = Models(STUDENT, TEACHER, LENGTH)
    found = scenario(recipe(case), models, cluster, ranks, Assumptions(), lambda key: key)
    return device_memory(found, cluster, Assumptions())


def recipe(case: Case) -> Recipe:
    name, overrides = case
    return resolve_recipe(name, overrides, [PACKAGED_RECIPES]).recipe


# What a plan calls a part, and what the count does; the teacher's live tensors are counted with its outputs.
PARTS = {
    "student": "student_weights",
    "teacher": "teacher_weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "activations": "activations",
    "loss": "loss",
    "outputs": "buffers",
}
WITHIN = 0.10  # the planner's promise, for the sum and for each part that makes a tenth of it
LARGE = 0.10


def pairs(plan: Memory, counts: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Part -> planned and counted bytes."""
    found = {part: (int(getattr(plan, key)), counts.get(key, 0)) for part, key in PARTS.items()}
    found["outputs"] = (plan.buffers + plan.teacher_forward, found["outputs"][1])
    return found


def misses(name: str, plan: Memory, counts: Mapping[str, int]) -> list[str]:
    """What is off by more than it may be."""
    total = sum(counts.values())
    wrong = [
        f"{name}: {part} planned {size:,}, counted {real:,}"
        for part, (size, real) in pairs(plan, counts).items()
        if max(size, real) > LARGE * total and abs(size - real) > WITHIN * real
    ]
    if abs(plan.total - total) > WITHIN * total:
        wrong.append(f"{name}: sum planned {plan.total:,}, counted {total:,}")
    return wrong


def row(name: str, plan: Memory, counts: Mapping[str, int]) -> str:
    """One line of the table in tools/bench/RESULTS.md, MB, planned / counted."""
    cells = [f"{size / 1e6:.0f} / {real / 1e6:.0f}" for size, real in pairs(plan, counts).values()]
    total = sum(counts.values())
    off = f"{100 * (plan.total / total - 1):+.1f} %"
    return f"| {name} | {' | '.join(cells)} | {plan.total / 1e6:.0f} / {total / 1e6:.0f} | {off} |"
