"""`ekd eval lm` and `light`: which environment the latter takes, and what is refused before anything is made."""

from pathlib import Path

import pytest

from ekd_nemo.cli import eval_light
from ekd_nemo.cli.app import main
from ekd_nemo.cli.eval_lm import LmOptions


@pytest.mark.parametrize(
    ("variable", "words", "taken"),
    [
        (None, [], "assets/env/lighteval"),
        ("/opt/image", [], "/opt/image"),
        ("/opt/image", ["--env", "mine"], "mine"),
    ],
)
def test_the_environment_is_the_options_or_the_images(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, words: list[str], taken: str
) -> None:
    asked: list[Path] = []

    def run_light(options: LmOptions, env: Path) -> None:
        asked.append(env)

    monkeypatch.setattr(eval_light, "run_light", run_light)
    monkeypatch.delenv("EKD_LIGHTEVAL_ENV", raising=False)
    if variable is not None:
        monkeypatch.setenv("EKD_LIGHTEVAL_ENV", variable)
    assert main(["eval", "light", "model", *words]) == 0
    assert asked == [Path(taken)]


@pytest.mark.parametrize("harness", ["lm", "light"])
@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "model: no tokenizer; expected one of tokenizer.json"),
        (["--device", "tpu"], "--device tpu: accepted are cpu, cuda, auto"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_made(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    harness: str,
    words: list[str],
    told: str,
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert main(["eval", harness, "model", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {told}")
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
