"""`ekd telemetry`: record the energy of a command, and say whether a record is whole."""

from pathlib import Path
from typing import Annotated

import typer

from ekd_nemo.cli.common import table
from ekd_nemo.errors import EXIT_FAILURE

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Record the energy of a command."
)


@app.callback()
def _group() -> None:
    """Record the energy of a command, verify a record, serve it to Prometheus."""


@app.command(no_args_is_help=True)
def record(
    command: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND...", help="The command and its arguments.")
    ],
    runs: Annotated[Path, typer.Option(help="Where run directories are made.")] = Path("runs"),
    run_id: Annotated[
        str | None, typer.Option(help="Name of the run; the same name continues it.")
    ] = None,
    phase: Annotated[str, typer.Option(help="The phase that the command counts as.")] = (
        "student_train"
    ),
    meter: Annotated[
        str, typer.Option(help="auto, nvml, dcgm, rapl, hwmon, estimate or replay.")
    ] = "auto",
    uuid: Annotated[
        list[str] | None, typer.Option(help="A GPU to measure; may be repeated. Default: all.")
    ] = None,
    cpu_tdp_w: Annotated[
        float | None, typer.Option(help="TDP of one processor package, for estimate.")
    ] = None,
    replay_file: Annotated[
        Path | None, typer.Option(help="A recorded power file, for replay.")
    ] = None,
    power_period_ms: Annotated[int, typer.Option(help="Time between power samples.")] = 100,
    counter_period_ms: Annotated[int, typer.Option(help="Time between counter reads.")] = 1000,
) -> None:
    """Run a command with a sampler beside it; exits as the command does."""
    from ekd_nemo.errors import UserError
    from ekd_nemo.meter.choose import MeterSettings
    from ekd_nemo.records.phases import as_phase
    from ekd_nemo.records.rundir import RunDir
    from ekd_nemo.telemetry.record import default_run_id, record_command
    from ekd_nemo.telemetry.settings import SamplerSettings

    try:
        checked = as_phase(phase)
    except ValueError as error:
        raise UserError(f"--phase: {error}") from None
    settings = SamplerSettings(
        meters=MeterSettings(meter=meter, uuids=uuid, cpu_tdp_w=cpu_tdp_w, replay_file=replay_file),
        power_period_ms=power_period_ms,
        counter_period_ms=counter_period_ms,
    )
    run = RunDir(runs / (run_id or default_run_id(command)))
    code = record_command(run, command, settings, checked)
    typer.echo(f"recorded in {run.path}; ekd metrics summarise {run.path}", err=True)
    raise typer.Exit(code)


@app.command()
def verify(run: Annotated[Path, typer.Argument(help="The run directory.")]) -> None:
    """Say whether the telemetry of a run is whole; exit code 1 if it is not."""
    from ekd_nemo.records.rundir import RunDir
    from ekd_nemo.telemetry.verify import table_rows, verify_run

    verdict = verify_run(RunDir(run))
    if verdict.devices:
        typer.echo(table(table_rows(verdict)))
        typer.echo(
            "\ntime: from the first power sample to the last; gaps: stretches without one, and the longest; "
            "counter: power integrated, against the energy counter, from 60 s on"
        )
    lines = sum(report.lines for report in verdict.files.values())
    typer.echo(f"read {lines:,} lines in {len(verdict.files)} files")
    for note in verdict.notes:
        typer.echo(f"note: {note}")
    for problem in verdict.problems:
        typer.echo(f"problem: {problem}")
    count = len(verdict.problems)
    typer.echo(
        f"{run}: whole: every sampler ended in order, every phase was sampled, no line is torn"
        if verdict.is_whole
        else f"{run}: not whole: {count} problem{'s' if count > 1 else ''}; its figures carry flags and bounds"
    )
    if not verdict.is_whole:
        raise typer.Exit(EXIT_FAILURE)


@app.command()
def serve(
    runs: Annotated[Path, typer.Argument(help="A run directory, or a folder of them.")] = Path(
        "runs"
    ),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 9477,
) -> None:
    """Serve live power, energy, phases and tokens to Prometheus until interrupted."""
    import signal
    import threading

    from ekd_nemo.telemetry.exporter import serving

    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: ended.set())
    with serving(runs, host=host, port=port) as bound:
        typer.echo(f"serving {runs} on http://{host}:{bound}/metrics")
        ended.wait()
