"""One MLflow run for all attempts of a training run."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from ekd_nemo.records.atomic import write_text
from ekd_nemo.records.rundir import RunDir


class MlflowLogger(Protocol):
    """What of Lightning's logger is used."""

    @property
    def run_id(self) -> str | None:
        """MLflow's id; made on the server when first asked for."""
        ...


L = TypeVar("L", bound=MlflowLogger)


def continued(run: RunDir, make: Callable[[str | None], L]) -> L:
    """A logger that goes on with the MLflow run of the attempts before; its id is kept in `logs/mlflow_run_id`.

    Args:
        run: where the id is kept.
        make: makes the logger of an id, or of a new run for None.
    """
    kept = run.logs / "mlflow_run_id"
    stored = kept.read_text().strip() if kept.is_file() else None
    logger = make(stored)
    if stored is None and logger.run_id is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_text(kept, f"{logger.run_id}\n")
    return logger
