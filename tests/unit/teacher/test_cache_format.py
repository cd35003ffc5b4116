"""The cache's format: round trips, damage, resumption, refusals."""

import errno
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ekd_nemo.errors import DataError, RunError
from ekd_nemo.sources.cache_manifest import (
    BUILDING,
    MANIFEST,
    CacheIdentity,
    read_cache_manifest,
)
from ekd_nemo.teacher.cache import block as block_module
from ekd_nemo.teacher.cache import writer as writer_module
from ekd_nemo.teacher.cache.pieces import (
    from_planes,
    log_of,
    pack_bits,
    packed_size,
    planes,
    quantised_log,
    unpack_bits,
)
from ekd_nemo.teacher.cache.reader import CacheReader, damages
from ekd_nemo.teacher.cache.select import select
from ekd_nemo.teacher.cache.sparse_codec import Ragged, decode_sparse, encode_sparse
from ekd_nemo.teacher.cache.writer import CacheWriter
from tests.unit.teacher.caches import (
    VOCAB,
    dense_of,
    identity,
    logits_of,
    row,
    sample_name,
    tokens_of,
    write_cache,
)

KINDS = ["topk", "sampled", "hidden", "embeddings"]


@given(
    st.integers(0, 32).flatmap(
        lambda w: st.tuples(st.just(w), st.lists(st.integers(0, 2**w - 1), max_size=40))
    )
)
def test_packed_bits_come_back(given_: tuple[int, list[int]]) -> None:
    width, values = given_
    packed = pack_bits(np.array(values, np.int64), width)
    assert len(packed) == packed_size(len(values), width)
    assert unpack_bits(memoryview(packed), len(values), width).tolist() == values


@given(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=30))
def test_planes_come_back(values: list[int]) -> None:
    stored = planes(np.array(values, "<i4"))
    assert from_planes(memoryview(stored), "<i4", len(values)).tolist() == values


@pytest.mark.parametrize(("bits", "step"), [(8, 16 / 255), (16, 32 / 65535)])
def test_logarithms_are_good_to_half_a_step(bits: int, step: float) -> None:
    p = np.geomspace(1e-6, 1, 500)
    error = np.abs(log_of(quantised_log(p, bits), bits) - np.log(p))
    assert error.max() <= 0.5 * step * 1.001  # float32 of numbers up to 14


@st.composite
def ragged(draw: st.DrawFn) -> tuple[Ragged, int]:
    vocab = draw(st.sampled_from([2, 200, 257, 49152, 128256, 151936]))
    tokens = draw(
        st.lists(
            st.sets(st.integers(0, vocab - 1), min_size=1, max_size=min(vocab, 12)),
            min_size=1,
            max_size=6,
        )
    )
    ids = np.array([i for token in tokens for i in sorted(token)], np.int64)
    counts = np.array([len(token) for token in tokens], np.int64)
    share = np.repeat(1 / (counts + 1), counts)
    return Ragged(counts, ids, share, tail=1 / (counts + 1)), vocab


@given(ragged())
def test_any_ids_of_any_vocabulary_come_back(given_: tuple[Ragged, int]) -> None:
    entries, vocab = given_
    who = identity(vocab_size=vocab)
    rows = decode_sparse(memoryview(encode_sparse(entries, who)), who)
    assert rows.ids[rows.ids >= 0].tolist() == entries.ids.tolist()
    assert (rows.ids >= 0).sum(1).tolist() == entries.counts.tolist()
    found = np.exp(rows.log_probs)[rows.ids >= 0]
    # 16 bits: a step of 0.0005 nats, and a tail in steps of 1/65535.
    np.testing.assert_allclose(found, entries.probabilities, rtol=1e-3)
    mass = np.where(rows.ids >= 0, np.exp(rows.log_probs), 0).sum(1)
    np.testing.assert_allclose(mass + rows.tail, 1, atol=1e-5)


@pytest.mark.parametrize(("bits", "bound"), [(8, 0.07), (16, 1e-3)])
def test_top_k_is_what_the_teacher_said(tmp_path: Path, bits: int, bound: float) -> None:
    """8 bits: half a step of 0.063 nats, twice where the sum is corrected."""
    samples = write_cache(tmp_path / "c", identity(probability_bits=bits))
    reader = CacheReader(tmp_path / "c")
    for number, sample in enumerate(samples):
        values, ids = torch.softmax(logits_of(number), -1).topk(8)
        rows = reader.sparse(sample)
        order = ids.sort(-1)
        assert torch.equal(torch.from_numpy(rows.ids), order.values)
        found = torch.from_numpy(rows.log_probs)
        assert (found - values.log().gather(1, order.indices)).abs().max() < bound
        assert rows.tail is not None
        np.testing.assert_allclose(rows.tail, 1 - values.sum(-1), atol=1e-5)


def test_what_is_below_the_floor_is_left_to_the_tail(tmp_path: Path) -> None:
    who = identity(k=64, min_probability=0.01)
    samples = write_cache(tmp_path / "c", who)
    for number, sample in enumerate(samples):
        p = torch.softmax(logits_of(number), -1)
        rows = CacheReader(tmp_path / "c").sparse(sample)
        kept = torch.from_numpy(rows.ids >= 0).sum(1)
        assert torch.equal(kept, (p >= 0.01).sum(1).clamp(min=1, max=64))


@pytest.mark.parametrize(
    ("storage", "bound"), [("fp32", 0.0), ("bf16", 2**-8), ("int8", 0.5 / 127 * 1.001)]
)
def test_hidden_states_come_back(tmp_path: Path, storage: str, bound: float) -> None:
    """bf16 keeps 8 bits; 8-bit codes are good to half of 1/127 of the group's largest."""
    samples = write_cache(tmp_path / "c", identity("hidden", storage=storage))
    reader = CacheReader(tmp_path / "c")
    for number, sample in enumerate(samples):
        for part, want in enumerate(dense_of(number)):
            found = reader.dense(sample, part).float()
            error = (found - want).abs() / want.abs().clamp(min=1e-30)
            if storage == "int8":
                error = (found - want).abs() / want.abs().max()
            assert found.shape == want.shape
            assert error.max() <= bound


def test_draws_depend_on_seed_sample_and_position_alone(tmp_path: Path) -> None:
    one = row(4, identity("sampled"))
    assert row(4, identity("sampled")) == one
    assert row(4, identity("sampled", seed=4)).payload != one.payload
    write_cache(tmp_path / "c", identity("sampled"))
    rows = CacheReader(tmp_path / "c").sparse(sample_name(4))
    assert rows.draws is not None
    assert rows.draws.sum(1).tolist() == [20] * tokens_of(4)


@pytest.mark.parametrize("kind", KINDS)
def test_any_flipped_byte_is_found(tmp_path: Path, kind: str) -> None:
    """verify names the file; reading all samples stops at one of the block, or at the table."""
    write_cache(tmp_path / "c", identity(kind), count=4)
    samples = [sample_name(number) for number in range(4)]
    files = sorted(p for p in (tmp_path / "c").rglob("*") if p.is_file())
    assert len(files) == 4  # manifest, index, two blocks
    rng = np.random.default_rng(0)
    for file in files:
        whole = file.read_bytes()
        ends = {0, 1, len(whole) - 1, len(whole) - 2, len(whole) // 2}
        for place in ends | set(rng.integers(0, len(whole), 60).tolist()):
            file.write_bytes(
                whole[:place]
                + bytes([whole[place] ^ 1 << int(rng.integers(8))])
                + whole[place + 1 :]
            )
            assert file.name in _verify(tmp_path / "c"), f"{file.name} byte {place}"
            with pytest.raises(DataError, match="sample|manifest|index"):
                _read_all(tmp_path / "c", samples)
        file.write_bytes(whole)
    assert _verify(tmp_path / "c") == ""


def _verify(folder: Path) -> str:
    try:
        return " ".join(damages(folder))
    except DataError as error:
        return str(error)


def _read_all(folder: Path, samples: list[str]) -> None:
    reader = CacheReader(folder)
    for sample in samples:
        try:
            reader.entry(sample)
        except DataError as error:
            assert f"sample {sample}" in str(error)
            raise


def test_a_missing_sample_is_named(tmp_path: Path) -> None:
    write_cache(tmp_path / "c", identity())
    with pytest.raises(DataError, match=f"holds no sample {sample_name(99)}"):
        CacheReader(tmp_path / "c").entry(sample_name(99))


def test_a_missing_block_is_named(tmp_path: Path) -> None:
    samples = write_cache(tmp_path / "c", identity())
    (tmp_path / "c" / "blocks" / "block-00000001.arrow").unlink()
    assert "block-00000001.arrow" in damages(tmp_path / "c")[0]
    with pytest.raises(DataError, match=f"sample {samples[3]}.*block-00000001"):
        CacheReader(tmp_path / "c").entry(samples[3])


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_number_of_writers_changes_no_byte(tmp_path: Path) -> None:
    who = identity()
    samples = write_cache(tmp_path / "one", who)
    writer = CacheWriter(tmp_path / "three", who, samples)
    writer.begin()
    for rank in (2, 0, 1):
        for block in writer.missing(rank, 3):
            writer.write(block, [row(samples.index(s), who) for s in writer.block(block)])
    writer.finish()
    assert files_of(tmp_path / "one") == files_of(tmp_path / "three")


def test_the_manifest_needs_no_second_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 read terabytes again while the others waited; blocks found whole were read already, too."""
    who = identity()
    samples = write_cache(tmp_path / "one", who)
    first, second = (CacheWriter(tmp_path / "two", who, samples) for _ in range(2))
    first.begin()
    first.write(0, [row(samples.index(s), who) for s in first.block(0)])
    for block in second.missing():
        second.write(block, [row(samples.index(s), who) for s in second.block(block)])

    def opened(*_: object) -> None:
        raise AssertionError("reads a block again")

    monkeypatch.setattr(writer_module, "OpenBlock", opened)
    second.finish()
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def _build_slowly(folder: Path, who: CacheIdentity, samples: list[str]) -> None:
    """A build that is to be killed: stops for long in the middle of writing its second block."""
    real = os.fsync

    def fsync(number: int) -> None:
        if list((folder / "blocks").glob("block-*0.arrow")):
            (folder / "in-the-middle").touch()
            time.sleep(60)
        real(number)

    os.fsync = fsync
    writer = CacheWriter(folder, who, samples)
    writer.begin()
    for block in writer.missing():
        writer.write(block, [row(samples.index(s), who) for s in writer.block(block)])


def test_a_killed_build_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    who = identity()
    samples = write_cache(tmp_path / "whole", who)
    folder = tmp_path / "killed"
    process = multiprocessing.get_context("spawn").Process(
        target=_build_slowly, args=(folder, who, samples)
    )
    process.start()
    while not (folder / "in-the-middle").exists():
        assert process.is_alive()
        time.sleep(0.01)
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (folder / "in-the-middle").unlink()
    assert list((folder / "blocks").glob(".*partial*")), "killed too late to matter"
    with pytest.raises(DataError, match="not finished"):
        read_cache_manifest(folder)
    writer = CacheWriter(folder, who, samples)
    assert not writer.is_finished()
    writer.begin()
    assert writer.missing() == [1, 2]
    for block in writer.missing():
        writer.write(block, [row(samples.index(s), who) for s in writer.block(block)])
    writer.finish()
    assert files_of(folder) == files_of(tmp_path / "whole")


def test_a_block_that_a_crash_tore_is_made_again(tmp_path: Path) -> None:
    who = identity()
    samples = write_cache(tmp_path / "c", who)
    (tmp_path / "c" / MANIFEST).unlink()
    shutil.rmtree(tmp_path / "c" / "blocks")
    write = CacheWriter(tmp_path / "c", who, samples)
    write.begin()
    assert write.missing() == [0, 1, 2]
    write.write(0, [row(n, who) for n in range(3)])
    path = tmp_path / "c" / "blocks" / "block-00000000.arrow"
    path.write_bytes(path.read_bytes()[:-700])
    assert write.missing() == [0, 1, 2]


def test_a_finished_cache_is_kept_and_another_refused(tmp_path: Path) -> None:
    who = identity()
    samples = write_cache(tmp_path / "c", who)
    assert CacheWriter(tmp_path / "c", who, samples).is_finished()
    assert CacheWriter(tmp_path / "c", who, samples[:2]).is_finished()
    before = files_of(tmp_path / "c")
    for other, match in [
        ({"teacher": "other"}, "teacher is t+, wanted other"),
        ({"tokenizer": "other"}, "tokenizer is k+, wanted other"),
        ({"temperature": 2.0}, r"temperature is 1\.0, wanted 2\.0"),
        ({"k": 9}, "k is 8, wanted 9"),
    ]:
        with pytest.raises(DataError, match=match):
            CacheWriter(tmp_path / "c", identity(**other), samples).is_finished()
    with pytest.raises(DataError, match="without 1 of 9 samples"):
        CacheWriter(tmp_path / "c", who, [*samples, sample_name(50)]).is_finished()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(DataError, match="is no cache"):
        CacheWriter(tmp_path / "mine", who, samples).is_finished()
    assert files_of(tmp_path / "c") == before


def test_an_unfinished_cache_of_other_settings_or_samples_is_refused(tmp_path: Path) -> None:
    samples = [sample_name(n) for n in range(5)]
    CacheWriter(tmp_path / "c", identity(), samples).begin()
    assert (tmp_path / "c" / BUILDING).is_file()
    with pytest.raises(DataError, match="k is 8, wanted 4"):
        CacheWriter(tmp_path / "c", identity(k=4), samples).is_finished()
    with pytest.raises(DataError, match="5 other samples"):
        CacheWriter(tmp_path / "c", identity(), samples[1:]).is_finished()


def test_a_full_disk_is_one_line_and_leaves_what_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = identity()
    samples = [sample_name(n) for n in range(8)]
    writer = CacheWriter(tmp_path / "c", who, samples)
    writer.begin()
    writer.write(0, [row(n, who) for n in range(3)])
    before = files_of(tmp_path / "c")

    def full(_number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(block_module.os, "fsync", full)
    with pytest.raises(RunError, match="disk is full; 1 of 3 blocks are whole") as caught:
        writer.write(1, [row(n, who) for n in range(3, 6)])
    assert "\n" not in str(caught.value)
    assert files_of(tmp_path / "c") == before
    monkeypatch.undo()
    assert writer.missing() == [1, 2]


def test_a_sample_that_comes_again_is_kept_once(tmp_path: Path) -> None:
    who = identity()
    names = [sample_name(n) for n in (0, 1, 0, 2, 1)]
    writer = CacheWriter(tmp_path / "c", who, names)
    assert writer.samples == [sample_name(n) for n in (0, 1, 2)]


@pytest.mark.parametrize(
    ("kind", "changes", "match"),
    [
        ("topk", {"k": None}, "kind topk takes k"),
        ("sampled", {"k": 3}, "kind sampled takes no k"),
        ("hidden", {"final": False, "layers": ()}, "kind hidden keeps final or layers"),
        ("embeddings", {"layers": (1,)}, "kind hidden keeps"),
        ("hidden", {"colour": 1}, "colour"),
    ],
)
def test_identities_that_mean_nothing_are_refused(
    kind: str, changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        identity(kind, **changes)


@settings(max_examples=20)
@given(st.integers(2, 60), st.floats(0, 0.999999))
def test_systematic_draws_are_within_one_of_their_share(samples: int, offset: float) -> None:
    from ekd_nemo.teacher.cache.select import select

    logits = logits_of(1)[:1]
    p = torch.softmax(logits, -1)[0]
    found = select(logits, identity("sampled", samples=samples), np.array([offset]))
    assert found.draws is not None
    draws = torch.zeros(VOCAB, dtype=torch.float64)
    draws[torch.from_numpy(found.ids)] = torch.from_numpy(found.draws).double()
    assert draws.sum() == samples
    assert (draws - samples * p).abs().max() < 1 + 1e-9


@pytest.mark.parametrize(
    "changes", [{"k": 70000, "min_probability": 0.0}, {"kind": "sampled", "samples": 100_000}]
)
def test_more_entries_or_draws_than_sixteen_bits_hold(changes: dict[str, Any]) -> None:
    """All of a large vocabulary, and a sure token that takes all draws."""
    who = identity(**{"vocab_size": 70000, **changes})
    logits = torch.linspace(0, 1, 70000, dtype=torch.float64).repeat(2, 1)
    logits[0, 5] += 40
    entries = select(logits, who, np.zeros(2))
    found = decode_sparse(memoryview(encode_sparse(entries, who)), who)
    assert np.array_equal(found.ids[found.ids >= 0], entries.ids)
    if found.draws is not None:
        assert found.draws.sum(1).tolist() == [100_000, 100_000]
