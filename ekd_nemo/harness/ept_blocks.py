"""Measured blocks of the benchmark: warm-up, passes over the workload, prefill alone, decode alone."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Final

from ekd_nemo.errors import UserError
from ekd_nemo.evals.ept_request import EptMeasured, EptPoint, EptSettings, EptWindow
from ekd_nemo.evals.token_count import cut_stream
from ekd_nemo.harness.ept_engine import Counted, Engine, Rows
from ekd_nemo.records.clock import boot_id

STEADY: Final = 0.1  # relative difference of two batches' durations, fixed lengths
NS_PER_S: Final = 1_000_000_000

Block = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Workload:
    """The rows of one pass, and what had to be done to the prompts."""

    rows: list[list[int]]
    num_empty: int
    num_cut: int


def workload(engine: Engine, texts: Sequence[str], point: EptPoint) -> Workload:
    """One pass: prompts as they are, at most as long as the model takes; or pieces of exactly one length.

    Raises:
        UserError: if the lengths asked for do not fit the model.
    """
    room = engine.max_tokens - point.new_tokens
    if room < (point.input_tokens or 1):
        raise UserError(
            f"{point.words}: the model takes {engine.max_tokens} tokens, prompt and answer together"
        )
    rows = engine.encode(texts)
    empty = sum(not text for text in texts)
    if point.input_tokens is not None:
        asked = [row for text, row in zip(texts, rows, strict=True) if text]
        return Workload(cut_stream(asked, len(texts), point.input_tokens), empty, 0)
    return Workload([row[:room] for row in rows], empty, sum(len(row) > room for row in rows))


def measure(
    engine: Engine,
    job: str,
    texts: Sequence[str],
    digest: str,
    point: EptPoint,
    settings: EptSettings,
    block: Block,
) -> EptMeasured:
    """Measure one point.

    Args:
        engine: with its model loaded.
        job: whose model it is.
        texts: prompts of one pass.
        digest: names them.
        point: what to measure.
        settings: how long and how often.
        block: a context around each measured block, which marks it.
    """
    work = workload(engine, texts, point)
    fixed = point.mode == "fixed"
    batches = list(_batches(work.rows, point.batch_size))

    def answer(rows: Rows) -> Counted:
        return engine.generate(rows, point.new_tokens, fixed=fixed)

    warm, steady = _warm_up(batches, answer, settings.warmup_s)
    repeats = tuple(
        _passes(batches, answer, settings.seconds, block, whole=not fixed)
        for _ in range(settings.repeats)
    )
    prefill = decode = None
    if settings.apart and fixed:
        prefill, decode = _apart(engine, batches, point, settings, block)
    return EptMeasured(
        job=job,
        point=point,
        engine=engine.name,
        engine_version=engine.version,
        dtype=engine.dtype,
        uuids=engine.uuids,
        boot_id=boot_id(),
        prompts_sha256=digest,
        repeats=repeats,
        prefill=prefill,
        decode=decode,
        details={
            **engine.details,
            "warmup_s": round(warm, 3),
            "empty_prompts": work.num_empty,
            "prompts_cut": work.num_cut,
        },
        flags=_flags(work, point, partial=len(batches[-1]) < point.batch_size, steady=steady),
    )


def _flags(work: Workload, point: EptPoint, *, partial: bool, steady: bool) -> tuple[str, ...]:
    """What a reader of the point has to know."""
    fixed = point.mode == "fixed"
    flags = {
        "not_steady": fixed and not steady,
        "empty_prompts": work.num_empty > 0 and not fixed,
        "prompts_cut": work.num_cut > 0,
        "partial_batch": partial,
    }
    return tuple(name for name, true in flags.items() if true)


def _batches(rows: Rows, size: int) -> Iterator[Rows]:
    """Full batches, and what is left."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _warm_up(
    batches: Sequence[Rows], answer: Callable[[Rows], Counted], least_s: float
) -> tuple[float, bool]:
    """At least two batches and `least_s`; seconds it took, and whether the last two took as long as one another."""
    begun = time.monotonic()
    took: list[float] = []
    for rows in cycle(batches):
        started = time.monotonic()
        answer(rows)
        took.append(time.monotonic() - started)
        if len(took) > 1 and time.monotonic() - begun >= least_s:
            break
    return time.monotonic() - begun, abs(took[-1] - took[-2]) <= STEADY * took[-2]


def _passes(
    batches: Iterable[Rows],
    work: Callable[[Rows], Counted],
    least_s: float,
    block: Block,
    *,
    whole: bool,
) -> EptWindow:
    """Batches over and over until `least_s` have gone by; `whole`: only whole passes, where batches differ in work."""
    listed = list(batches)
    done: list[Counted] = []
    with block():
        start_ns = time.monotonic_ns()
        for number, rows in enumerate(cycle(listed), start=1):
            done.append(work(rows))
            end_ns = time.monotonic_ns()
            complete = not whole or number % len(listed) == 0
            if complete and end_ns - start_ns >= least_s * NS_PER_S:
                return _window(start_ns, end_ns, done)
    raise AssertionError("there is at least one batch")


def _window(start_ns: int, end_ns: int, done: Sequence[Counted]) -> EptWindow:
    return EptWindow(
        start_ns=start_ns,
        end_ns=end_ns,
        input_tokens=sum(one.input_tokens for one in done),
        output_tokens=sum(one.output_tokens for one in done),
        requests=sum(one.requests for one in done),
    )


def _apart(
    engine: Engine,
    batches: Sequence[Rows],
    point: EptPoint,
    settings: EptSettings,
    block: Block,
) -> tuple[EptWindow, EptWindow | None]:
    """Prefill (one token out) and decode (the others, from a kept cache), each in a block of its own."""
    prefill = _passes(
        batches,
        lambda rows: engine.generate(rows, 1, fixed=True),
        settings.seconds,
        block,
        whole=False,
    )
    steps = point.new_tokens - 1
    state: Any = engine.prepare_decoding(batches[0]) if steps else None
    if state is None:
        return prefill, None
    engine.decode(state, steps)  # warm-up: its shapes are new
    decode = _passes(
        batches[:1],
        lambda _rows: engine.decode(state, steps),
        settings.seconds,
        block,
        whole=False,
    )
    return prefill, decode
