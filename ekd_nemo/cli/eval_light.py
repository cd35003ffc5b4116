"""What `ekd eval light` does with its options; apart from them, so that `--help` loads none of it."""

from pathlib import Path

import typer

from ekd_nemo.cli.common import table
from ekd_nemo.cli.eval_lm import LmOptions, metered
from ekd_nemo.config.recipe import EvalLm
from ekd_nemo.evals.eval_dir import EvalDir
from ekd_nemo.evals.harnesses import LIGHT
from ekd_nemo.evals.light import BUILT_IN, DEFAULT, gather_light_tasks, lighteval
from ekd_nemo.evals.light_env import open_env
from ekd_nemo.evals.lm import STORE, evaluate
from ekd_nemo.evals.results import read_eval_dir
from ekd_nemo.evals.table import score_rows
from ekd_nemo.evals.target import find_split, find_subject, find_targets


def run_light(options: LmOptions, env: Path) -> None:
    """Check everything, make the environment if it is not there, evaluate what is not stored, print the scores."""
    options.check()
    subject = find_subject(options.target, typer.echo)
    wanted = EvalLm(tasks=DEFAULT)
    names = options.names(wanted)
    split = find_split(subject, names, options.data)
    settings = options.settings(names, wanted)
    tasks = gather_light_tasks(
        names, options.include_path, split, STORE / "tasks", options.task_data, settings.limit
    )
    eval_dir = EvalDir(subject.eval_dir(options.out).path, LIGHT)
    targets = find_targets(subject, options.beside, eval_dir=eval_dir, tell=typer.echo)
    engine = lighteval(open_env(env, typer.echo))
    if set(names) & set(BUILT_IN):
        typer.echo(f"held-out text: {split.origin}, seed {split.seed}, fraction {split.fraction}")
    log = subject.log(eval_dir).with_name("light_eval.log")
    evaluate(
        targets,
        settings,
        tasks,
        log,
        typer.echo,
        engine=engine,
        again=options.again,
        around=lambda: metered(subject),
    )
    scores = [score for score in read_eval_dir(eval_dir.path) if score.harness == LIGHT.name]
    typer.echo(table(score_rows(scores)))
    typer.echo(f"results: {eval_dir.path}")
