"""`ekd eval`: scores of students and teachers, by harnesses that others use as well."""

from pathlib import Path
from typing import Annotated

import typer

from ekd_nemo.cli import eval_options as option

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Evaluate students and teachers."
)


@app.callback()
def _group() -> None:
    """Evaluate students and teachers."""


@app.command()
def lm(
    target: option.Target,
    teacher: option.Teacher = None,
    base: option.Base = None,
    tasks: option.LmTasks = None,
    include_path: option.IncludePath = None,
    limit: option.LmLimit = None,
    num_fewshot: option.LmShots = None,
    batch_size: option.LmBatchSize = None,
    ranks: option.Ranks = 1,
    device: option.Device = "auto",
    dtype: option.Dtype = "auto",
    data: option.Data = None,
    task_data: option.TaskData = None,
    out: option.Out = None,
    chat_template: option.ChatTemplate = False,
    student_only: option.StudentOnly = False,
    again: option.Again = False,
    trust_remote_code: option.TrustRemoteCode = False,
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
    target: option.Target,
    teacher: option.Teacher = None,
    base: option.Base = None,
    tasks: option.LightTasks = None,
    custom_tasks: option.CustomTasks = None,
    limit: option.LightLimit = None,
    num_fewshot: option.LightShots = None,
    batch_size: option.LightBatchSize = None,
    device: option.Device = "auto",
    dtype: option.Dtype = "auto",
    data: option.Data = None,
    task_data: option.TaskData = None,
    out: option.Out = None,
    env: option.Env = Path("assets/env/lighteval"),
    chat_template: option.ChatTemplate = False,
    student_only: option.StudentOnly = False,
    again: option.Again = False,
    trust_remote_code: option.TrustRemoteCode = False,
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
    target: option.Target,
    teacher: option.Teacher = None,
    prompts: option.Prompts = "built-in",
    batch_sizes: option.BatchSizes = "1,4,16",
    input_tokens: option.InputTokens = "128",
    new_tokens: option.NewTokens = "64",
    natural: option.Natural = True,
    apart: option.Apart = True,
    requests: option.Requests = 16,
    repeats: option.Repeats = 3,
    seconds: option.Seconds = 5.0,
    warmup_s: option.WarmUp = 2.0,
    seed: option.Seed = 1234,
    engine: option.Engine = "transformers",
    tensor: option.Tensor = 1,
    device: option.Device = "auto",
    dtype: option.Dtype = "auto",
    meter: option.Meter = "auto",
    cpu_tdp_w: option.CpuTdp = None,
    runs: option.Runs = Path("runs"),
    chat_template: option.ChatTemplate = False,
    student_only: option.StudentOnly = False,
    again: option.Again = False,
    trust_remote_code: option.TrustRemoteCode = False,
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
