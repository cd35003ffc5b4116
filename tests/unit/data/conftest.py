from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from tests.unit.data.tokenizers import saved_tokenizer, small_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return small_tokenizer()


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_tokenizer(tmp_path_factory.mktemp("tokenizer"))
