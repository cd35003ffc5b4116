"""The figures of runs and methods, by name, each a `Quantity`: what every table and report is made of."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ekd_nemo.errors import DataError
from ekd_nemo.evals.results import Score, read_results
from ekd_nemo.metrics.charged import charges_of
from ekd_nemo.metrics.energy import RunEnergy, run_energy
from ekd_nemo.metrics.ledger import Ledger, ledger_of_run
from ekd_nemo.metrics.quality import Performance, ScoreMismatchError, performance, shown_scores
from ekd_nemo.metrics.quantity import Quantity
from ekd_nemo.metrics.repeats import mean_of_repeats
from ekd_nemo.metrics.tokens import TrainedTokens, trained_tokens
from ekd_nemo.metrics.training import Training, read_training
from ekd_nemo.records.identity import RunIdentity, read_identity
from ekd_nemo.records.rundir import RunDir, find_runs
from ekd_nemo.units import J_PER_KWH

PHASE: Final = "phase:"
SCORE: Final = "score:"

Figures = Mapping[str, Quantity]


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run.

    Attributes:
        figures: by name; those of phases and scores begin with `phase:` and `score:`.
        teacher, base: `score:` figures of the other models that the run evaluated.
        flags: of the records as a whole.
    """

    run_id: str
    path: Path
    identity: RunIdentity
    figures: Figures
    teacher: Figures
    base: Figures
    flags: tuple[str, ...]

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


def summarise(folders: Iterable[Path]) -> Summary:
    """Read run directories, or folders of them, and summarise what is there.

    Raises: RunDirError where a folder holds no run or a run.json is broken.
    """
    found = {run.path.resolve(): run for folder in folders for run in find_runs(folder)}
    runs = [summarise_run(found[path]) for path in sorted(found)]
    runs.sort(key=lambda r: (r.identity.recipe, r.identity.seed or 0, r.run_id, str(r.path)))
    runs = _with_charges(runs)
    methods = methods_of(runs)
    return Summary(tuple(runs), methods, comparisons_of(methods))


def summarise_run(run: RunDir) -> RunSummary:
    """The figures of one run, without what other runs charge it."""
    identity = read_identity(run)
    ledger = ledger_of_run(run)
    training = read_training(run.train_log)
    scores, broken = _scores(run)
    figures = run_figures(ledger, training, scores)
    if broken is not None:
        absent = Quantity.missing("", broken, ("broken_scores",))
        figures |= dict.fromkeys(("om_perf", "om_perf_rms", "retention"), absent)
    return RunSummary(
        identity.run_id,
        run.path,
        identity,
        figures,
        {SCORE + name: q for name, q in shown_scores(scores, "teacher").items()},
        {SCORE + name: q for name, q in shown_scores(scores, "base").items()},
        ledger.flags,
    )


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


def _with_charges(runs: Sequence[RunSummary]) -> list[RunSummary]:
    """The runs with E_charged and E_amortised, which depend on the other runs."""
    own = {run.run_id: run.figures["e_run"] for run in runs}
    inputs = {run.run_id: run.identity.inputs for run in runs}
    shared = charges_of(own, inputs)
    charged: list[RunSummary] = []
    for run in runs:
        charges, e_run = shared[run.run_id], run.figures["e_run"]
        if own[run.run_id] is not e_run:  # the same recipe launched in two folders has one id
            mine = charges_of(
                {**own, run.run_id: e_run}, {**inputs, run.run_id: run.identity.inputs}
            )
            charges = mine[run.run_id]
        both = {"e_charged": charges.charged, "e_amortised": charges.amortised}
        charged.append(replace(run, figures={**run.figures, **both}))
    return charged


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
_RATIOS: Final = ("e_run", "e_charged", "energy_per_token", "tokens")
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
        f"{name}_difference": _difference(figures[name], baseline[name]) for name in _DIFFERENCES
    }
    return {
        name: replace(quantity, low=None, high=None).flagged(*flags)
        for name, quantity in sorted(result.items())
    }


def _difference(one: Quantity, other: Quantity) -> Quantity:
    for part in (one, other):
        if part.value is None:
            return Quantity.missing(one.unit, part.reason or "", (*one.flags, *other.flags))
    assert one.value is not None
    assert other.value is not None
    return Quantity(one.value - other.value, one.unit, flags=(*one.flags, *other.flags))
