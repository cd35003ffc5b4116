"""FP8 is refused before anything is made, on this machine and for a cluster whose boards have none."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from ekd_nemo.cli.app import main
from ekd_nemo.config.resolve import ResolvedRecipe, resolve_recipe
from ekd_nemo.errors import ConfigError
from ekd_nemo.launch.checks import check_engine


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_without_transformer_engine(tiny: ResolvedRecipe, who: str) -> None:
    if find_spec("transformer_engine") is not None:
        pytest.skip("Transformer Engine is installed: this test is about a machine without it")
    check_engine(tiny.recipe)
    with pytest.raises(ConfigError, match=rf"{who}\.precision is fp8, and Transformer Engine"):
        check_engine(resolve_recipe("tiny", [f"{who}.precision=fp8"]).recipe)


def test_for_a_cluster_without_fp8(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["recipe", "launch", "tiny", "--cluster", "a100", "--set", "student.precision=fp8"]
    argv += ["--set", "train.global_batch_size=32"]
    before = sorted(here.rglob("*"))
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert (
        "student.precision is fp8, and A100 SXM4 80GB of cluster a100 has no FP8; accepted: bf16"
        in err
    )
    assert "--set student.precision=fp8: " in err
    assert err.count("\n") == 1
    assert sorted(here.rglob("*")) == before
