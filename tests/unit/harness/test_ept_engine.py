"""The transformers engine on a tiny model: counts against one sequence at a time, without batch, padding or cache."""

import json
from pathlib import Path
from typing import Any

import pytest

from ekd_nemo.errors import CheckpointError, UserError
from ekd_nemo.evals.ept_request import EptPoint, EptSettings
from tests.tiny_model import make_tiny

torch = pytest.importorskip("torch")
NEW = 12
TEXTS = ["A descriptor is", "", "The word " * 40, "In general, a name is bound to an object in a"]
SETTINGS = EptSettings(device="cpu", requests=len(TEXTS), seconds=0.05, warmup_s=0.0, repeats=2)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path) -> Path:
    """The tiny model without any end-of-sequence id of its own."""
    return make_tiny(tmp_path_factory.mktemp("plain") / "m", teacher_folder)


def load(folder: Path, settings: EptSettings = SETTINGS) -> Any:
    from ekd_nemo.harness.ept_engine import HfEngine

    return HfEngine(str(folder), settings, ["CPU-0"])


def alone(engine: Any, row: list[int], limit: int, ends: tuple[int, ...]) -> list[int]:
    """Greedy, one full forward pass a token."""
    ids = list(row)
    for _ in range(limit):
        with torch.no_grad():
            ids.append(int(engine._model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in ends:
            break
    return ids[len(row) :]


@pytest.fixture(scope="module")
def ending(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path, plain: Path) -> Path:
    """The same model, which ends at what its first and its last prompt would say early on."""
    engine = load(plain)
    rows = engine.encode(TEXTS)
    ends = [alone(engine, rows[0], NEW, ())[2], alone(engine, rows[3], NEW, ())[6]]
    folder = make_tiny(tmp_path_factory.mktemp("ending") / "m", teacher_folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return folder


def test_natural_ends_are_counted_as_one_sequence_at_a_time_would_be(ending: Path) -> None:
    engine = load(ending)
    rows = engine.encode(TEXTS)
    answers = [alone(engine, row, NEW, engine._ends) for row in rows]
    assert min(map(len, answers)) < NEW, "an answer that ends early, so that others pad it"
    found = engine.generate(rows, NEW, fixed=False)
    assert found.output_tokens == sum(map(len, answers))
    assert found.input_tokens == sum(map(len, rows))
    assert found.requests == len(TEXTS)


def test_an_empty_prompt_is_one_token_and_not_none(plain: Path) -> None:
    engine = load(plain)
    assert engine.encode([""]) == [[engine.empty_id]]
    assert engine.generate(engine.encode([""]), 3, fixed=True).input_tokens == 1


def test_fixed_lengths_ignore_the_end_of_sequence(ending: Path) -> None:
    engine = load(ending)
    rows = engine.encode(TEXTS)
    assert engine.generate(rows, NEW, fixed=True).output_tokens == NEW * len(TEXTS)


def test_decoding_from_the_cache_goes_on_as_generate_does_and_starts_over(plain: Path) -> None:
    engine = load(plain)
    row = engine.encode([TEXTS[3]])[0][:8]
    whole = alone(engine, row, NEW, ())
    state = engine.prepare_decoding([row, row])
    assert state.ids[0, len(row) :].tolist() == whole[:1]
    for _ in range(2):  # the state is as before after each
        engine_out = engine._run  # the ids themselves, not only their number
        state.cache.crop(len(row))
        ids = engine_out(
            state.ids, torch.ones_like(state.ids), NEW - 1, fixed=True, cache=state.cache
        )
        assert ids.sequences[1, len(row) :].tolist() == whole
        assert engine.decode(state, NEW - 1).output_tokens == 2 * (NEW - 1)


def test_over_long_prompts_are_cut_to_what_fits_and_counted_so(
    tmp_path: Path, teacher_folder: Path
) -> None:
    from ekd_nemo.harness.ept_blocks import workload

    engine = load(make_tiny(tmp_path / "m", teacher_folder, max_position_embeddings=40))
    point = EptPoint(mode="natural", batch_size=2, input_tokens=None, new_tokens=NEW)
    work = workload(engine, TEXTS, point)
    assert (work.num_cut, work.num_empty) == (1, 1)
    assert len(work.rows[2]) == 40 - NEW
    found = engine.generate(work.rows, NEW, fixed=False)
    assert found.input_tokens == sum(min(len(row), 28) for row in engine.encode(TEXTS))
    too_long = EptPoint(mode="fixed", batch_size=1, input_tokens=30, new_tokens=NEW)
    with pytest.raises(UserError, match="takes 40 tokens"):
        workload(engine, TEXTS, too_long)


def test_a_point_is_measured_with_counts_that_follow_from_its_lengths(plain: Path) -> None:
    from contextlib import nullcontext

    from ekd_nemo.harness.ept_blocks import measure

    engine = load(plain)
    fixed = EptPoint(mode="fixed", batch_size=3, input_tokens=8, new_tokens=5)
    found = measure(engine, "student", TEXTS, "p", fixed, SETTINGS, nullcontext)
    assert len(found.repeats) == 2
    for window in found.repeats:
        assert window.input_tokens == 8 * window.requests
        assert window.output_tokens == 5 * window.requests
        assert window.end_ns - window.start_ns >= 0.05e9
    assert found.prefill is not None and found.decode is not None
    assert found.prefill.output_tokens == found.prefill.requests
    assert found.decode.output_tokens == 4 * found.decode.requests
    assert "partial_batch" in found.flags  # four prompts in batches of three
    natural = EptPoint(mode="natural", batch_size=3, input_tokens=None, new_tokens=5)
    found = measure(engine, "student", TEXTS, "p", natural, SETTINGS, nullcontext)
    for window in found.repeats:
        assert window.requests % len(TEXTS) == 0, "whole passes only"
        passes = window.requests // len(TEXTS)
        assert window.input_tokens == passes * sum(map(len, engine.encode(TEXTS)))
    assert "empty_prompts" in found.flags and found.details["empty_prompts"] == 1
    assert (found.prefill, found.decode) == (None, None)


def test_the_folders_sampling_settings_do_not_make_answers_random(
    tmp_path: Path, teacher_folder: Path, plain: Path
) -> None:
    folder = make_tiny(tmp_path / "m", teacher_folder)
    sampled = {"do_sample": True, "temperature": 5.0, "top_p": 0.9, "max_length": 20}
    (folder / "generation_config.json").write_text(json.dumps(sampled))
    rows = load(plain).encode(TEXTS[:1])
    out = [
        load(path)._run(torch.tensor(rows), torch.ones(1, len(rows[0])).long(), 20, fixed=True)
        for path in (folder, plain)
    ]
    assert out[0].sequences.tolist() == out[1].sequences.tolist()


def test_a_folder_without_a_readable_tokenizer_is_one_line(
    tmp_path: Path, teacher_folder: Path
) -> None:
    folder = make_tiny(tmp_path / "m", teacher_folder)
    for path in folder.glob("*token*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="tokenizer cannot be read") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where there is none")
def test_a_gpu_that_is_not_there_is_refused(plain: Path) -> None:
    with pytest.raises(UserError, match="--device cuda"):
        load(plain, SETTINGS.model_copy(update={"device": "cuda"}))
