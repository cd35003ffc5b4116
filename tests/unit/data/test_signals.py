import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import ekd_nemo.data.build as build_module
from ekd_nemo.config.data import DataBuild
from ekd_nemo.data.command import main
from ekd_nemo.sources.document import Document


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_build_that_is_told_to_stop_leaves_nothing(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def endless(_: DataBuild) -> tuple[Iterator[Document], None]:
        def documents() -> Iterator[Document]:
            for n in range(10**9):
                if n == 1000:
                    assert len(list(tmp_path.iterdir())) == 1  # the partial folder
                    os.kill(os.getpid(), number)
                yield Document(f"{n}", text=f"text {n}")

        return documents(), None

    monkeypatch.setattr(build_module, "documents_of", endless)
    settings = DataBuild.model_validate(
        {"sources": [{"kind": "python-docs"}], "tokenizer": str(tokenizer_folder)}
    )
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        main(["build", "--settings", settings.model_dump_json(), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 128 + number
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(number) == before
