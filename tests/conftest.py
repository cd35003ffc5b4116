"""Fixtures that any test may ask for; nothing heavy is imported until one does."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]

# A busy machine is no failure: examples have no time limit of their own, tests have pytest's.
# Under CI the examples are always the same, so that a change is judged by itself; elsewhere new ones are drawn.
settings.register_profile("ekd", deadline=None, derandomize=os.environ.get("CI") == "true")
settings.load_profile("ekd")


@pytest.fixture(scope="session")
def teacher_folder() -> Path:
    """The Hugging Face folder of SmolLM2-135M-Instruct (Q4), made on first use (10 s)."""
    from tools.make_teacher import DEFAULT_OUT, make_teacher

    return make_teacher(ROOT / DEFAULT_OUT)
