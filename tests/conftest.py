"""Fixtures that any test may ask for; nothing heavy is imported until one does."""

from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]

# A busy machine is no failure: examples have no time limit of their own, tests have pytest's.
settings.register_profile("ekd", deadline=None)
settings.load_profile("ekd")


@pytest.fixture(scope="session")
def teacher_folder() -> Path:
    """The Hugging Face folder of SmolLM2-135M-Instruct (Q4), made on first use (10 s)."""
    from tools.make_teacher import DEFAULT_OUT, make_teacher

    return make_teacher(ROOT / DEFAULT_OUT)
