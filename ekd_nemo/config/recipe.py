"""The recipe: everything that decides what a run computes, and nothing about where it runs.

Paths are relative to the folder in which `ekd` is called.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ekd_nemo.config.base import Count, PositiveFloat, PositiveInt, Strict, Weight
from ekd_nemo.config.data import DataBuild
from ekd_nemo.config.objective import Objective

Method = Literal["sft", "response", "feature", "relation", "combined"]
Precision = Literal["fp32", "bf16", "fp8"]
Recompute = Literal["none", "selective", "full"]


class Parallel(Strict):
    """How one model is cut: `tensor * pipeline` ranks hold one copy, the rest are data parallel."""

    tensor: PositiveInt = 1
    pipeline: PositiveInt = 1
    virtual_pipeline: PositiveInt | None = None  # model chunks a stage, interleaved
    sequence_parallel: bool = False

    @model_validator(mode="after")
    def _fits_itself(self) -> "Parallel":
        if self.sequence_parallel and self.tensor == 1:
            raise ValueError("sequence_parallel goes with a tensor of 2 or more")
        if self.virtual_pipeline is not None and (self.virtual_pipeline < 2 or self.pipeline < 2):
            raise ValueError("virtual_pipeline of 2 or more goes with a pipeline of 2 or more")
        return self


class Split(Strict):
    """Ranks of their own for the teacher, which works ahead of the student and ships its outputs."""

    ranks: PositiveInt
    depth: PositiveInt = 1  # global batches ahead of the student
    transport: Precision = "bf16"


class CacheBuild(Strict):
    """How a cache is made when it is not there: what of the teacher's outputs it keeps.

    `topk` goes with `objective.response.support` top_k, `sampled` with sampled; `hidden` keeps the layers
    and final hidden states that the objective needs, `embeddings` those of the relation of the batch.
    """

    kind: Literal["topk", "sampled", "hidden", "embeddings"]
    k: PositiveInt = 64  # ids a token, for topk
    min_probability: Annotated[float, Field(ge=0, lt=1)] = 6e-4  # less likely ids join the tail
    samples: PositiveInt = 64  # draws a token, for sampled
    seed: Count = 0  # of the draws
    probability_bits: Literal[8, 16] = 8
    storage: Literal["fp32", "bf16", "int8"] = "bf16"  # of hidden states
    splits: tuple[Literal["train", "validation"], ...] = ("train", "validation")
    block_samples: PositiveInt | None = None  # of one file; None: as many as make 16 MiB, up to 64


class CacheUse(Strict):
    """The folder that the teacher's outputs are read from, built by `build` when it is not there."""

    path: str
    build: CacheBuild | None = None


class Teacher(Strict):
    """The frozen model that is distilled: a Hugging Face folder or hub id.

    `shared`: on the student's ranks, in the layout `parallel` (None: the student's). `split`: on ranks of
    its own. `cached`: its outputs are read from a cache.
    """

    path: str
    placement: Literal["shared", "split", "cached"] = "shared"
    precision: Precision = "bf16"
    parallel: Parallel | None = None
    offload: bool = False  # keep the weights in host memory between passes
    split: Split | None = None
    cache: CacheUse | None = None

    @model_validator(mode="after")
    def _fits_placement(self) -> "Teacher":
        for section in ("split", "cache"):
            wanted = self.placement == {"split": "split", "cache": "cached"}[section]
            if wanted != (getattr(self, section) is not None):
                raise ValueError(
                    f"placement {self.placement} goes {'with' if wanted else 'without'} "
                    f"the section {section}"
                )
        if self.offload and self.placement != "shared":
            raise ValueError("offload goes with placement shared")
        return self


class StudentInit(Strict):
    """Where the student's first weights come from.

    `checkpoint`: a Hugging Face folder, hub id or Megatron checkpoint at `path`. `random`: the architecture
    of `path` (a folder with config.json), weights drawn from the recipe's seed. `teacher_layers`: the
    teacher with only the layers of `keep_layers`, given in ascending order.
    """

    source: Literal["checkpoint", "random", "teacher_layers"]
    path: str | None = None
    keep_layers: tuple[Count, ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _fits_source(self) -> "StudentInit":
        if self.source == "teacher_layers":
            if self.keep_layers is None or self.path is not None:
                raise ValueError(
                    "source teacher_layers takes keep_layers (a list of layer numbers) and no path"
                )
            if list(self.keep_layers) != sorted(set(self.keep_layers)):
                raise ValueError("keep_layers takes each layer once, in ascending order")
        elif self.path is None or self.keep_layers is not None:
            raise ValueError(f"source {self.source} takes path and no keep_layers")
        return self


class Lora(Strict):
    """Low-rank adapters in place of full training."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: tuple[Literal["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"], ...] = (
        Field(default=("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"), min_length=1)
    )


class Student(Strict):
    """The model that is trained.

    `recompute`: which activations are made again in the backward pass instead of kept; `selective` those
    of the attention, `full` whole layers.
    """

    init: StudentInit
    precision: Precision = "bf16"
    parallel: Parallel = Parallel()
    recompute: Recompute = "none"
    lora: Lora | None = None


class Optimizer(Strict):
    """AdamW with a warm-up and a cosine or constant schedule."""

    lr: PositiveFloat
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: Count = 0
    weight_decay: Weight = 0.1
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    eps: PositiveFloat = 1e-8
    clip_grad: Annotated[float, Field(ge=0)] = 1.0
    distributed: bool = False  # shard the optimiser over data-parallel ranks (CUDA only)


class Train(Strict):
    """Steps, batches and the cadence of validation and checkpoints."""

    steps: PositiveInt
    global_batch_size: PositiveInt
    micro_batch_size: PositiveInt = 1
    val_interval: PositiveInt = 100
    val_samples: PositiveInt = 32
    checkpoint_interval: PositiveInt = 100
    log_interval: PositiveInt = 1

    @model_validator(mode="after")
    def _whole_microbatches(self) -> "Train":
        if self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} must be a multiple of "
                f"micro_batch_size {self.micro_batch_size}"
            )
        return self


class Data(Strict):
    """The shards to train on; built by `build` when `path` does not hold them yet."""

    path: str
    build: DataBuild | None = None


class EvalLm(Strict):
    """lm-eval tasks for the exported student and, beside it, the teacher."""

    tasks: tuple[str, ...]
    include_path: str | None = None  # a folder of task files; None: those that ship with ekd
    limit: PositiveInt | None = None
    batch_size: PositiveInt = 4


Sizes = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]


class EvalEpt(Strict):
    """The energy per token of inference, of the exported student and, beside it, the teacher."""

    batch_sizes: Sizes = (1, 4, 16)
    input_tokens: Sizes = (128,)
    new_tokens: Sizes = (64,)
    requests: PositiveInt = 16
    repeats: PositiveInt = 3
    engine: Literal["transformers", "vllm"] = "transformers"
    tensor: PositiveInt = 1  # GPUs a model, for vllm


class Evaluation(Strict):
    """What is evaluated once training has ended."""

    lm: EvalLm | None = None
    ept: EvalEpt | None = None
    teacher: bool = True


class Logging(Strict):
    """Where metrics go beside the console and `logs/train.jsonl`."""

    tensorboard: bool = True
    wandb_project: str | None = None
    mlflow_uri: str | None = None


class Energy(Strict):
    """How the run's energy is metered; `auto` takes NVML, else RAPL or hwmon, else the labelled estimate."""

    meter: Literal["auto", "nvml", "dcgm", "rapl", "hwmon", "estimate"] = "auto"
    power_period_ms: PositiveInt = 100
    counter_period_ms: PositiveInt = 1000
    cpu_tdp_w: PositiveFloat | None = None  # for `estimate`; None: the stated default of the meter


class Recipe(Strict):
    """One experiment.

    `repeats`: how many runs a cluster starts, with the seeds `seed`, `seed + 1` and so on; each is a run of its own.
    """

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
    description: str = ""
    method: Method
    seed: Count = 1234
    repeats: PositiveInt = 1
    teacher: Teacher | None = None
    student: Student
    data: Data
    objective: Objective = Objective()
    optimizer: Optimizer
    train: Train
    evaluation: Evaluation = Evaluation()
    logging: Logging = Logging()
    energy: Energy = Energy()
    baseline: str | None = None  # the name of the recipe that this one is compared with

    @model_validator(mode="after")
    def _method_has_what_it_needs(self) -> "Recipe":
        needs_teacher = self.method != "sft" or self.student.init.source == "teacher_layers"
        if needs_teacher and self.teacher is None:
            raise ValueError(
                f"method {self.method} with student.init.source {self.student.init.source} needs teacher"
            )
        families = self.objective.families
        expected = {"sft": (), "combined": families}.get(self.method, (self.method,))
        if families != expected or (self.method == "combined" and len(families) < 2):
            raise ValueError(
                f"method {self.method} does not go with an objective of "
                f"{', '.join(families) or 'cross-entropy alone'}: "
                "sft takes none, response, feature and relation their own section, combined two or more"
            )
        return self
