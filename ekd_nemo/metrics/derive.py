"""What is derived from a run's records and kept beside them: the ledger and the summary."""

from ekd_nemo.metrics.ledger import ledger_of_run
from ekd_nemo.metrics.ledger_store import write_ledger
from ekd_nemo.metrics.render import as_json
from ekd_nemo.metrics.summary import summarise
from ekd_nemo.records.atomic import write_text
from ekd_nemo.records.rundir import RunDir


def derive(run: RunDir) -> str:
    """Rebuild `ledger.parquet` and `summary.json` of one run; returns what was written, in a line.

    The summary is of the run alone, so energies charged by other runs are not in it.
    """
    rows = ledger_of_run(run).rows
    write_ledger(run.ledger, rows)
    write_text(run.summary_json, as_json(summarise([run.path])))
    return f"{run.ledger}: {len(rows)} rows; {run.summary_json}"
