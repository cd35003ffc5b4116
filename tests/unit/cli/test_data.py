import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ekd_nemo.cli.app import main
from ekd_nemo.config.data import DataBuild
from ekd_nemo.errors import ConfigError
from ekd_nemo.sources.options import parse_source


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The argv of every worker that would be started."""
    monkeypatch.chdir(tmp_path)
    calls: list[list[str]] = []

    def run(argv: list[str], check: bool) -> Any:
        calls.append(argv)
        return subprocess.CompletedProcess(argv, 0)

    monkeypatch.setattr("ekd_nemo.cli.common.subprocess.run", run)
    monkeypatch.setattr("ekd_nemo.cli.common.require_extra", lambda *_: None)
    return calls


def settings_in(argv: list[str]) -> DataBuild:
    assert argv[2:5] == ["ekd_nemo.worker", "data", "build"]
    return DataBuild.model_validate_json(argv[argv.index("--settings") + 1])


def test_options_win_over_the_file_and_set_over_both(started: list[list[str]]) -> None:
    lines = [
        "sources:",
        "  - kind: hub",
        "    name: org/set",
        "    streaming: true",
        "tokenizer: t",
        "seed: 3",
    ]
    Path("build.yaml").write_text("\n".join(lines))
    argv = ["data", "build", "--config", "build.yaml", "--out", "out", "--seed", "4"]
    assert main([*argv, "--sequence-length", "64", "--set", "sequence_length=32"]) == 0
    settings = settings_in(started[0])
    assert (settings.seed, settings.sequence_length, settings.tokenizer) == (4, 32, "t")
    assert settings.sources[0].label == "hub:org/set"
    assert started[0][-1] == "out"


def test_sources_from_the_command_line(started: list[list[str]]) -> None:
    sources = [
        "--source",
        "jsonl:a.jsonl,weight=0.5",
        "--source",
        "hub:org/set,split=test,weight=2",
    ]
    assert main(["data", "build", *sources, "--tokenizer", "t", "--out", "o"]) == 0
    first, second = settings_in(started[0]).sources
    assert (first.label, first.weight) == ("jsonl:a.jsonl", 0.5)
    assert second.model_dump(exclude_none=True) == {
        "kind": "hub",
        "name": "org/set",
        "split": "test",
        "streaming": False,
        "weight": 2,
    }


@pytest.mark.parametrize("text", ["web:x", "python-docs:x", "jsonl", "hub:", ""])
def test_an_unknown_source_lists_the_accepted(text: str) -> None:
    with pytest.raises(ConfigError, match="accepted: python-docs, jsonl:FILE or hub:NAME"):
        parse_source(text)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--source", "web:x"], "--source web:x: accepted: python-docs, jsonl:FILE or hub:NAME"),
        (["--source", "python-docs,seed"], "--source python-docs,seed: 'seed' is not key=value"),
        (["--source", "python-docs"], "tokenizer is missing from the build"),
        (["--source", "python-docs,wieght=1", "--tokenizer", "t"], "did you mean weight?"),
        (
            ["--source", "python-docs", "--tokenizer", "t", "--template", "x"],
            "--template: template is",
        ),
        (["--config", "none.yaml"], "none.yaml: cannot be read"),
        (
            ["--config", "b.yaml"],
            "b.yaml:2: sequence_lenght is not a key of the build; did you mean",
        ),
    ],
)
def test_a_mistake_is_one_line_with_exit_code_2(
    started: list[list[str]], capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    Path("b.yaml").write_text("tokenizer: t\nsequence_lenght: 5\n")
    assert main(["data", "build", "--out", "o", *argv]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not started
    assert not Path("o").exists()


def test_other_shards_are_refused_before_a_worker_starts(
    started: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = DataBuild.model_validate({"sources": [{"kind": "python-docs"}], "tokenizer": "t"})
    manifest = {
        "schema_version": 1,
        "settings": settings.model_dump(mode="json"),
        "inputs": {},
        "files": {},
    }
    Path("o").mkdir()
    Path("o/manifest.json").write_text(json.dumps(manifest))
    argv = ["data", "build", "--source", "python-docs", "--tokenizer", "t", "--out", "o"]
    assert main(argv) == 0
    assert "o: kept, built with the same settings" in capsys.readouterr().out
    assert main([*argv, "--seed", "9"]) == 2
    assert "seed: there 1234, wanted 9" in capsys.readouterr().err
    assert not started
