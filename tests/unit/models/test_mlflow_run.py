"""A resumed run goes on in the MLflow run that its first attempt began; no server is needed to tell."""

from pathlib import Path

from ekd_nemo.models.mlflow_run import continued
from ekd_nemo.records.rundir import RunDir


class Logger:
    """As Lightning's: a new run's id is the server's choice."""

    begun = 0

    def __init__(self, run_id: str | None) -> None:
        if run_id is None:
            Logger.begun += 1
        self.run_id = run_id or f"server-{Logger.begun}"


def test_attempts_share_one_run_and_runs_do_not(tmp_path: Path) -> None:
    first, second = RunDir(tmp_path / "a"), RunDir(tmp_path / "b")
    ids = [continued(run, Logger).run_id for run in (first, first, second, first)]
    assert ids == ["server-1", "server-1", "server-2", "server-1"]
    assert Logger.begun == 2
