"""The figures of runs and methods, by name, each a `Quantity`: what every table and report is made of."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from ekd_nemo.errors import DataError
from ekd_nemo.evals.results import Score, read_results
from ekd_nemo.metrics.charged import charges_of
from ekd_nemo.metrics.efficiency import tokens_to_break_even
from ekd_nemo.metrics.energy import RunEnergy, run_energy
from ekd_nemo.metrics.inference import (
    NO_BENCHMARK,
    efficiency_figures,
    inference_figures,
    matched,
)
from ekd_nemo.metrics.ledger import Ledger, ledger_of_run
from ekd_nemo.metrics.quality import Performance, ScoreMismatchError, performance, shown_scores
from ekd_nemo.metrics.quantity import Quantity, difference, total
from ekd_nemo.metrics.repeats import mean_of_repeats
from ekd_nemo.metrics.reuse import Twin, twin_of, uses_to_pay
from ekd_nemo.metrics.site import check_factors, site_figures
from ekd_nemo.metrics.tokens import TrainedTokens, trained_tokens
from ekd_nemo.metrics.training import Training, read_training
from ekd_nemo.records.ept import EptFile, read_ept
from ekd_nemo.records.identity import Factors, Input, RunIdentity, read_identity
from ekd_nemo.records.rundir import RunDir, find_runs
from ekd_nemo.units import J_PER_KWH

PHASE: Final = "phase:"
SCORE: Final = "score:"

Figures = Mapping[str, Quantity]


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run.

    Attributes:
        run_id: the run's name in this summary: its id, with as much of its folders in front as tells runs of one
            id apart.
        figures: by name; those of phases and scores begin with `phase:` and `score:`.
        teacher, base: `score:` and `ept_` figures of the other models that the run evaluated.
        factors: PUE, grid carbon and price that were given, with their sources.
        flags: of the records as a whole.
        twin: what it shares with runs that differ in where the teacher's outputs come from; None without a teacher.
        benchmark: the energy-per-token benchmark as it was recorded.
    """

    run_id: str
    path: Path
    identity: RunIdentity
    figures: Figures
    teacher: Figures
    base: Figures
    factors: Factors
    flags: tuple[str, ...]
    twin: Twin | None = None
    benchmark: EptFile = field(default_factory=EptFile)

    @property
    def records(self) -> RunDir:
        """Where the run's records lie."""
        return RunDir(self.path)


@dataclass(frozen=True, slots=True)
class MethodSummary:
    """The repeats of one recipe: same resolved recipe but for the seed."""

    name: str
    recipe: str
    method: str
    recipe_hash: str
    baseline: str | None
    runs: tuple[str, ...]
    figures: Figures


@dataclass(frozen=True, slots=True)
class Comparison:
    """A method against its baseline: differences, and ratios of energies."""

    name: str
    baseline: str
    figures: Figures


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything that `ekd metrics summarise` shows."""

    runs: tuple[RunSummary, ...]
    methods: tuple[MethodSummary, ...]
    comparisons: tuple[Comparison, ...]


def summarise(folders: Iterable[Path], site: Factors | None = None) -> Summary:
    """Read run directories, or folders of them, and summarise what is there.

    Args:
        folders: where the runs are.
        site: factors in place of those that the runs' own records state.
    Raises: RunDirError where a folder holds no run or a run.json is broken.
    """
    found = {run.path.resolve(): run for folder in folders for run in find_runs(folder)}
    runs = [summarise_run(found[path], site) for path in sorted(found)]
    runs.sort(key=lambda r: (r.identity.recipe, r.identity.seed or 0, r.run_id, str(r.path)))
    runs = with_charges(told_apart(runs))
    methods = with_reuse(methods_of(runs), runs)
    return Summary(tuple(runs), methods, comparisons_of(methods))


def told_apart(runs: Sequence[RunSummary]) -> list[RunSummary]:
    """The runs, those of one id named with their folders: the same recipe launched in two places has one id."""
    names = {run.path: run.run_id for run in runs}
    depth = 0
    while repeated := {n for n, count in Counter(names.values()).items() if count > 1}:
        depth += 1
        for run in runs:
            if names[run.path] in repeated:
                parents = run.path.resolve().parts[-depth - 1 : -1]
                names[run.path] = "/".join((*parents, run.identity.run_id))
    return [replace(run, run_id=names[run.path]) for run in runs]


def summarise_run(run: RunDir, site: Factors | None = None) -> RunSummary:
    """The figures of one run, without what other runs charge it."""
    identity = read_identity(run)
    ledger = ledger_of_run(run)
    training = read_training(run.train_log)
    scores, broken = _scores(run)
    figures = run_figures(ledger, training, scores)
    if broken is not None:
        absent = Quantity.missing("", broken, ("broken_scores",))
        figures |= dict.fromkeys(("om_perf", "om_perf_rms", "retention"), absent)
    benchmark, why_none = _benchmark(run)
    factors = _overridden(identity.factors, site)
    check_factors(factors, str(run.run_json))
    figures |= inference_figures(benchmark, "student", why_none)
    figures |= efficiency_figures(benchmark, figures["om_perf"])
    figures |= site_figures(figures["e_run"], factors)
    return RunSummary(
        identity.run_id,
        run.path,
        identity,
        figures,
        _of_other(scores, benchmark, "teacher"),
        _of_other(scores, benchmark, "base"),
        factors,
        ledger.flags,
        twin_of(run),
        benchmark,
    )


def _benchmark(run: RunDir) -> tuple[EptFile, str]:
    """The energy-per-token benchmark, and why there is none: a broken file must not cost the table."""
    try:
        return read_ept(run.ept_json), NO_BENCHMARK
    except DataError as error:
        return EptFile(), str(error)


def _overridden(stored: Factors, site: Factors | None) -> Factors:
    """The run's own factors, each replaced where the site states another."""
    if site is None:
        return stored
    given = {name: value for name in Factors.model_fields if (value := getattr(site, name))}
    return stored.model_copy(update=given)


def _of_other(scores: Sequence[Score], benchmark: EptFile, role: str) -> Figures:
    """What the run measured of the teacher, or of the student before distillation."""
    figures = {SCORE + name: q for name, q in shown_scores(scores, role).items()}
    if any(entry.role == role for entry in benchmark.entries):
        figures |= inference_figures(benchmark, role)
    return figures


def _scores(run: RunDir) -> tuple[Sequence[Score], str | None]:
    """The scores, or why none can be read: one torn result must not cost the table of all runs."""
    try:
        return read_results(run.path), None
    except DataError as error:
        return (), str(error)


def run_figures(ledger: Ledger, training: Training, scores: Sequence[Score]) -> dict[str, Quantity]:
    """All figures of one run by name."""
    energy = run_energy(ledger)
    marked = trained_tokens(rank.tokens for rank in ledger.ranks)
    figures = _training_figures(training, marked)
    figures |= _energy_figures(energy, figures["tokens"])
    figures |= _quality_figures(scores)
    return figures


def _training_figures(training: Training, marked: TrainedTokens) -> dict[str, Quantity]:
    """Steps and tokens from the log, or from the marks where there is no log; then losses."""
    steps, tokens, valid = training.steps, training.tokens, training.tokens_valid
    if marked.steps:
        flags = list(marked.flags)
        if tokens.value is not None and tokens.value != marked.tokens:
            flags.append("log_and_marks_disagree")
        tokens = Quantity(marked.tokens, "tokens", flags=tuple(flags))
        steps = Quantity(marked.steps, "steps", flags=("lost_steps",) if marked.lost_steps else ())
        if marked.tokens_valid is not None:
            valid = Quantity(marked.tokens_valid, "tokens", flags=marked.flags)
    return {
        "steps": steps,
        "tokens": tokens,
        "tokens_valid": valid,
        "final_loss": training.loss,
        "final_ce": training.ce,
        "val_ce": training.val_ce,
        "val_kl": training.val_kl,
    }


def _energy_figures(energy: RunEnergy, tokens: Quantity) -> dict[str, Quantity]:
    return {
        "duration": energy.duration,
        "e_run": energy.e_run,
        "e_run_kwh": energy.e_run.divided_by(Quantity(J_PER_KWH), "kWh"),
        "e_charged": energy.e_run,
        "e_amortised": energy.e_run,
        "mean_power": energy.mean_power,
        "energy_per_token": energy.e_run.divided_by(tokens, "J/token"),
        "e_lost": energy.lost,
        "e_eval": energy.evaluation,
        "e_ept": energy.ept,
        "e_host": energy.host,
        "e_unattributed": energy.unattributed,
        "counter_difference": energy.discrepancy,
        **{PHASE + phase: quantity for phase, quantity in energy.phases.items()},
    }


def _quality_figures(scores: Sequence[Score]) -> dict[str, Quantity]:
    """Scores of the student and OM_perf; scores that do not compare give the reason instead."""
    try:
        result = performance(scores)
    except ScoreMismatchError as error:
        missing = Quantity.missing("", str(error), ("scores_not_comparable",))
        result = Performance(missing, missing, missing, ())
    shown = {SCORE + name: quantity for name, quantity in shown_scores(scores, "student").items()}
    return {
        **shown,
        "om_perf": result.om_perf,
        "om_perf_rms": result.om_perf_rms,
        "retention": result.retention,
    }


def with_charges(runs: Sequence[RunSummary]) -> list[RunSummary]:
    """The runs with what depends on the other runs: E_charged, E_amortised, and T* of them."""
    own = {run.run_id: run.figures["e_run"] for run in runs}
    inputs = {
        run.run_id: [_resolved(run, part, runs) for part in run.identity.inputs] for run in runs
    }
    made = {key: value for run in runs for key, value in _made_beside(run).items()}
    shared = charges_of(own, inputs, made)
    charged: list[RunSummary] = []
    for run in runs:
        charges = shared[run.run_id]
        best = matched(run.benchmark)
        both = {
            "e_charged": charges.charged,
            "e_amortised": charges.amortised,
            "t_star": tokens_to_break_even(charges.charged, best.teacher, best.student),
        }
        charged.append(replace(run, figures={**run.figures, **both}))
    return charged


def _resolved(reader: RunSummary, part: Input, runs: Sequence[RunSummary]) -> Input:
    """An input with its maker's name in this summary: of several of one id the one beside the reader."""
    makers = [run for run in runs if run.identity.run_id == part.run_id]
    beside = [run for run in makers if run.path.resolve().parent == reader.path.resolve().parent]
    for found in (makers, beside):
        if len(found) == 1:
            return part.model_copy(update={"run_id": found[0].run_id})
    return part


_MADE_IN: Final = {"cache": "teacher_cache", "data": "preprocess"}


def _made_beside(run: RunSummary) -> dict[tuple[str, str], Quantity]:
    """Energy of what a training run made on the way, by kind of input: the rest of its energy is its own."""
    if PHASE + "student_train" not in run.figures:
        return {}
    return {
        (run.run_id, kind): run.figures[PHASE + phase]
        for kind, phase in _MADE_IN.items()
        if PHASE + phase in run.figures
    }


def with_reuse(
    methods: Sequence[MethodSummary], runs: Sequence[RunSummary]
) -> tuple[MethodSummary, ...]:
    """The methods with N*, where a cached one has a twin whose teacher runs live."""
    by_name = {run.run_id: run for run in runs}
    members = {method.name: [by_name[run] for run in method.runs] for method in methods}
    found: list[MethodSummary] = []
    for method in methods:
        twin = members[method.name][0].twin
        live = next(
            (m for m in methods if twin and members[m.name][0].twin == Twin(twin.key, False)), None
        )
        n_star = Quantity.missing("uses", "its teacher's outputs are not read from a cache")
        if twin is not None and twin.is_cached:
            n_star = Quantity.missing(
                "uses", "no run among these has the same recipe with a live teacher"
            )
            if live is not None:
                cache = _making_of_cache(members[method.name], by_name)
                n_star = uses_to_pay(cache, live.figures, _without_making(method, members))
        found.append(replace(method, figures={**method.figures, "n_star": n_star}))
    return tuple(found)


def _making_of_cache(readers: Sequence[RunSummary], runs: Mapping[str, RunSummary]) -> Quantity:
    """Energy of making the cache that these runs read."""
    known = list(runs.values())
    makers = {
        _resolved(reader, part, known).run_id
        for reader in readers
        for part in reader.identity.inputs
        if part.kind == "cache"
    }
    names = sorted(name for name in makers if name is not None and name in runs)
    if not names or len(names) < len(makers):
        absent = ", ".join(sorted(str(name) for name in makers if name not in runs)) or "no run"
        return Quantity.missing("J", f"the maker of the cache, {absent}, is not among the runs")
    parts = [
        _made_beside(runs[name]).get((name, "cache"), runs[name].figures["e_run"]) for name in names
    ]
    return total(parts, "J", "")


def _without_making(method: MethodSummary, members: Mapping[str, Sequence[RunSummary]]) -> Figures:
    """The figures of a cached method, the making of the cache taken off the run that made it for itself."""
    energies: list[Quantity] = []
    for run in members[method.name]:
        made = _made_beside(run).get((run.run_id, "cache"))
        e_run = run.figures["e_run"]
        energies.append(e_run if made is None else difference(e_run, made))
    return {**method.figures, "e_run": mean_of_repeats(energies, "J")}


def methods_of(runs: Sequence[RunSummary]) -> tuple[MethodSummary, ...]:
    """Mean and interval of every figure over the runs of one recipe, in the order of the runs."""
    groups: dict[tuple[str, str], list[RunSummary]] = defaultdict(list)
    for run in runs:
        groups[run.identity.recipe, run.identity.recipe_hash].append(run)
    names = [recipe for recipe, _ in groups]
    return tuple(
        MethodSummary(
            recipe if names.count(recipe) == 1 else f"{recipe}@{recipe_hash[:6]}",
            recipe,
            members[0].identity.method,
            recipe_hash,
            members[0].identity.baseline,
            tuple(member.run_id for member in members),
            mean_figures([member.figures for member in members]),
        )
        for (recipe, recipe_hash), members in groups.items()
    )


def mean_figures(repeats: Sequence[Figures]) -> dict[str, Quantity]:
    """Mean of each figure that any of the repeats has; a repeat that lacks it counts as missing."""
    names = list(dict.fromkeys(name for figures in repeats for name in figures))
    means: dict[str, Quantity] = {}
    for name in names:
        unit = next(figures[name].unit for figures in repeats if name in figures)
        absent = Quantity.missing(unit, "this run has none")
        means[name] = mean_of_repeats([figures.get(name, absent) for figures in repeats], unit)
    return means


def comparisons_of(methods: Sequence[MethodSummary]) -> tuple[Comparison, ...]:
    """Each method that names a baseline, against that recipe's mean."""
    return tuple(
        Comparison(method.name, other.name, compare(method.figures, other.figures))
        for method in methods
        if method.baseline is not None
        for other in methods
        if other.recipe == method.baseline
    )


_DIFFERENCES: Final = ("val_kl", "val_ce", "om_perf", "retention")
_RATIOS: Final = ("e_run", "e_charged", "e_amortised", "energy_per_token", "tokens", "ept_total")
_EQUAL_TOKENS: Final = 0.01


def compare(figures: Figures, baseline: Figures) -> dict[str, Quantity]:
    """Differences of qualities and ratios of energies, method against baseline.

    All are flagged `unequal_tokens` where the two trained on token counts more than 1 % apart.
    """
    tokens = figures["tokens"].divided_by(baseline["tokens"], "")
    uneven = tokens.value is None or abs(tokens.value - 1) > _EQUAL_TOKENS
    flags = ("unequal_tokens",) if uneven else ()
    result = {f"{name}_ratio": figures[name].divided_by(baseline[name], "") for name in _RATIOS}
    result |= {
        f"{name}_difference": difference(figures[name], baseline[name]) for name in _DIFFERENCES
    }
    return {
        name: replace(quantity, low=None, high=None).flagged(*flags)
        for name, quantity in sorted(result.items())
    }
