"""How many cases a property is tried on: few in `make test`, EKD_TEST_CASES (10,000) in `make test-full`."""

import os

from hypothesis import HealthCheck, settings

ASKED = int(os.environ.get("EKD_TEST_CASES", "0"))
PATIENCE_S = 3600  # of one property at ten thousand cases; in `make test` it takes seconds


def cases(least: int) -> settings:
    """Settings of a reader's property: `least` cases, or as many as were asked for."""
    return settings(
        max_examples=max(least, ASKED),
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
