"""One set of simulated runs for all tests of the report."""

from pathlib import Path

import pytest

from tests.simulated_runs import make_runs


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods of two runs each, on four boards, and the maker of a cache."""
    return make_runs(tmp_path_factory.mktemp("simulated"), repeats=2, period_s=4.0)
