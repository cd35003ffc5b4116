"""`ekd eval`: scores of students and teachers, by harnesses that others use as well."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Evaluate students and teachers."
)


# The options that both harnesses share.
Target = Annotated[
    Path, typer.Argument(help="A run, a Hugging Face folder or hub id, or a Megatron checkpoint.")
]
Teacher = Annotated[Path | None, typer.Option(help="Teacher model; by default the recipe's.")]
Base = Annotated[
    Path | None,
    typer.Option(help="The student before training; by default the recipe's, if it is a model."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto.")]
Dtype = Annotated[
    str, typer.Option(help="float32, bfloat16 or auto: float32 on a CPU, bfloat16 on a GPU.")
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
ChatTemplate = Annotated[
    bool, typer.Option("--chat-template", help="Put prompts into the chat template.")
]
StudentOnly = Annotated[bool, typer.Option("--student-only", help="Leave the teacher out.")]
Again = Annotated[bool, typer.Option("--again", help="Run also what is stored.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with a model.")
]


@app.callback()
def _group() -> None:
    """Evaluate students and teachers."""


@app.command()
def lm(
    target: Target,
    teacher: Teacher = None,
    base: Base = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Tasks, groups or suites (om_perf, extended), with commas."),
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option(help="A folder of lm-eval task files.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Items per task, from the first.")
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option(min=0, help="Examples in the prompt; by default the task's."),
    ] = None,
    batch_size: Annotated[
        str | None, typer.Option(help="Sequences at once, or auto: as the memory allows.")
    ] = None,
    ranks: Annotated[
        int, typer.Option(min=1, help="Processes that share the items, each with the whole model.")
    ] = 1,
    device: Device = "auto",
    dtype: Dtype = "auto",
    data: Data = None,
    task_data: TaskData = None,
    out: Out = None,
    chat_template: ChatTemplate = False,
    student_only: StudentOnly = False,
    again: Again = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Run lm-eval on a run's student and teacher, or on one model."""
    from ekd_nemo.cli.eval_lm import LmOptions, run_lm

    run_lm(
        LmOptions(
            target=target,
            teacher=teacher,
            base=base,
            tasks=tasks,
            include_path=include_path,
            limit=limit,
            num_fewshot=num_fewshot,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
            data=data,
            out=out,
            chat_template=chat_template,
            student_only=student_only,
            again=again,
            trust_remote_code=trust_remote_code,
            ranks=ranks,
            task_data=task_data,
        )
    )


@app.command()
def light(
    target: Target,
    teacher: Teacher = None,
    base: Base = None,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks, with commas; by default python_docs_last_word.")
    ] = None,
    custom_tasks: Annotated[
        Path | None, typer.Option(help="A Python file of lighteval tasks; it is run.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="Items per task: the first; of lighteval's own, as it draws them."
        ),
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="Examples in the prompt; by default none.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Sequences at once; rounded up to eights.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    data: Data = None,
    task_data: TaskData = None,
    out: Out = None,
    env: Annotated[
        Path,
        typer.Option(
            envvar="EKD_LIGHTEVAL_ENV", help="Environment of lighteval; made if it is not there."
        ),
    ] = Path("assets/env/lighteval"),
    chat_template: ChatTemplate = False,
    student_only: StudentOnly = False,
    again: Again = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Run lighteval, in an environment of its own, on a run's student and teacher, or on one model."""
    from ekd_nemo.cli.eval_light import run_light
    from ekd_nemo.cli.eval_lm import LmOptions

    options = LmOptions(
        target=target,
        teacher=teacher,
        base=base,
        tasks=tasks,
        include_path=custom_tasks,
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=None if batch_size is None else str(batch_size),
        device=device,
        dtype=dtype,
        data=data,
        out=out,
        chat_template=chat_template,
        student_only=student_only,
        again=again,
        trust_remote_code=trust_remote_code,
        task_data=task_data,
    )
    run_light(options, env)


@app.command()
def compare(
    first: Annotated[
        str, typer.Argument(help="A run (its student), RUN:teacher, or a folder of results.")
    ],
    second: Annotated[
        str | None, typer.Argument(help="The same; by default the first run's teacher.")
    ] = None,
) -> None:
    """Compare two evaluated models on the same items, pair by pair."""
    from ekd_nemo.cli.common import table
    from ekd_nemo.evals.compare import compare_rows, compare_sides, find_side

    sides = find_side(first), find_side(second or first, None if second else "teacher")
    typer.echo(table(compare_rows(compare_sides(*sides))))


@app.command()
def ept(
    target: Target,
    teacher: Teacher = None,
    prompts: Annotated[
        str, typer.Option(help="built-in, a file (*.jsonl, or one a line), or hub:NAME[:SPLIT].")
    ] = "built-in",
    batch_sizes: Annotated[str, typer.Option(help="Sequences at once, with commas.")] = "1,4,16",
    input_tokens: Annotated[str, typer.Option(help="Fixed prompt lengths, with commas.")] = "128",
    new_tokens: Annotated[
        str, typer.Option(help="Fixed answer lengths, with commas; the most where natural.")
    ] = "64",
    natural: Annotated[
        bool, typer.Option(help="Measure also prompts as they are, answered to their end.")
    ] = True,
    apart: Annotated[bool, typer.Option(help="Measure prefill and decode apart.")] = True,
    requests: Annotated[int, typer.Option(min=1, help="Prompts of one pass.")] = 16,
    repeats: Annotated[int, typer.Option(min=1, help="Measured blocks of each point.")] = 3,
    seconds: Annotated[
        float, typer.Option(help="Least length of a block; below 5 s in all no J/token is told.")
    ] = 5.0,
    warmup_s: Annotated[float, typer.Option(help="Least warm-up of each point.")] = 2.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice and order of prompts.")] = 1234,
    engine: Annotated[str, typer.Option(help="transformers or vllm.")] = "transformers",
    tensor: Annotated[int, typer.Option(min=1, help="GPUs a model, for vllm.")] = 1,
    device: Device = "auto",
    dtype: Dtype = "auto",
    meter: Annotated[str, typer.Option(help="auto, nvml, rapl or estimate.")] = "auto",
    cpu_tdp_w: Annotated[
        float | None, typer.Option(help="TDP of one processor package, for estimate.")
    ] = None,
    runs: Annotated[
        Path, typer.Option(help="Where a folder that is no run gets one of its own.")
    ] = Path("runs"),
    chat_template: ChatTemplate = False,
    student_only: StudentOnly = False,
    again: Again = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Measure the energy per token of inference of a run's student and teacher, or of one model."""
    from ekd_nemo.cli.eval_ept import EptOptions, make_settings, run_benchmark

    settings = make_settings(
        engine=engine,
        dtype=dtype,
        device=device,
        requests=requests,
        repeats=repeats,
        seconds=seconds,
        warmup_s=warmup_s,
        seed=seed,
        tensor=tensor,
        apart=apart,
        chat_template=chat_template,
        trust_remote_code=trust_remote_code,
    )
    run_benchmark(
        EptOptions(
            target=target,
            teacher=teacher,
            prompts=prompts,
            batch_sizes=batch_sizes,
            input_tokens=input_tokens,
            new_tokens=new_tokens,
            settings=settings,
            natural=natural,
            runs=runs,
            meter=meter,
            cpu_tdp_w=cpu_tdp_w,
            student_only=student_only,
            again=again,
        )
    )
