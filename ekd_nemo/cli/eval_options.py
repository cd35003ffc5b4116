"""The options of `ekd eval`, by what they say; their defaults stand in the commands."""

from pathlib import Path
from typing import Annotated

import typer

# Of all three.
Target = Annotated[
    Path, typer.Argument(help="A run, a Hugging Face folder or hub id, or a Megatron checkpoint.")
]
Teacher = Annotated[Path | None, typer.Option(help="Teacher model; by default the recipe's.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto.")]
Dtype = Annotated[
    str, typer.Option(help="float32, bfloat16 or auto: float32 on a CPU, bfloat16 on a GPU.")
]
ChatTemplate = Annotated[
    bool, typer.Option("--chat-template", help="Put prompts into the chat template.")
]
StudentOnly = Annotated[bool, typer.Option("--student-only", help="Leave the teacher out.")]
Again = Annotated[bool, typer.Option("--again", help="Run also what is stored.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with a model.")
]

# Of both harnesses.
Base = Annotated[
    Path | None,
    typer.Option(help="The student before training; by default the recipe's, if it is a model."),
]
Data = Annotated[
    Path | None, typer.Option(help="Shards whose held-out side the built-in tasks take.")
]
TaskData = Annotated[
    Path | None,
    typer.Option(help="A folder of bbh/*.json and gsm8k/*.jsonl, for bbh_choice_*, gsm8k_*."),
]
Out = Annotated[
    Path | None, typer.Option(help="Folder for the results; by default the run's eval/.")
]

# Of lm-eval.
LmTasks = Annotated[
    str | None, typer.Option(help="Tasks, groups or suites (om_perf, extended), with commas.")
]
IncludePath = Annotated[Path | None, typer.Option(help="A folder of lm-eval task files.")]
LmLimit = Annotated[int | None, typer.Option(min=1, help="Items per task, from the first.")]
LmShots = Annotated[
    int | None, typer.Option(min=0, help="Examples in the prompt; by default the task's.")
]
LmBatchSize = Annotated[
    str | None, typer.Option(help="Sequences at once, or auto: as the memory allows.")
]
Ranks = Annotated[
    int, typer.Option(min=1, help="Processes that share the items, each with the whole model.")
]

# Of lighteval.
LightTasks = Annotated[
    str | None, typer.Option(help="Tasks, with commas; by default python_docs_last_word.")
]
CustomTasks = Annotated[
    Path | None, typer.Option(help="A Python file of lighteval tasks; it is run.")
]
LightLimit = Annotated[
    int | None,
    typer.Option(min=1, help="Items per task: the first; of lighteval's own, as it draws them."),
]
LightShots = Annotated[
    int | None, typer.Option(min=0, help="Examples in the prompt; by default none.")
]
LightBatchSize = Annotated[
    int | None, typer.Option(min=1, help="Sequences at once; rounded up to eights.")
]
Env = Annotated[
    Path,
    typer.Option(
        envvar="EKD_LIGHTEVAL_ENV", help="Environment of lighteval; made if it is not there."
    ),
]

# Of the energy-per-token benchmark.
Prompts = Annotated[
    str, typer.Option(help="built-in, a file (*.jsonl, or one a line), or hub:NAME[:SPLIT].")
]
BatchSizes = Annotated[str, typer.Option(help="Sequences at once, with commas.")]
InputTokens = Annotated[str, typer.Option(help="Fixed prompt lengths, with commas.")]
NewTokens = Annotated[
    str, typer.Option(help="Fixed answer lengths, with commas; the most where natural.")
]
Natural = Annotated[
    bool, typer.Option(help="Measure also prompts as they are, answered to their end.")
]
Apart = Annotated[bool, typer.Option(help="Measure prefill and decode apart.")]
Requests = Annotated[int, typer.Option(min=1, help="Prompts of one pass.")]
Repeats = Annotated[int, typer.Option(min=1, help="Measured blocks of each point.")]
Seconds = Annotated[
    float, typer.Option(help="Least length of a block; below 5 s in all no J/token is told.")
]
WarmUp = Annotated[float, typer.Option(help="Least warm-up of each point.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the choice and order of prompts.")]
Engine = Annotated[str, typer.Option(help="transformers or vllm.")]
Tensor = Annotated[int, typer.Option(min=1, help="GPUs a model, for vllm.")]
Meter = Annotated[str, typer.Option(help="auto, nvml, rapl or estimate.")]
CpuTdp = Annotated[float | None, typer.Option(help="TDP of one processor package, for estimate.")]
Runs = Annotated[Path, typer.Option(help="Where a folder that is no run gets one of its own.")]
