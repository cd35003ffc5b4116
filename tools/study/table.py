"""RESULTS.md from the records, and from nothing else: the same records, the same bytes.

python -m tools.study.table
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from ekd_nemo.metrics.format import decimals, energy, rounded, signed
from ekd_nemo.metrics.quantity import Quantity, difference
from ekd_nemo.metrics.repeats import mean_of_repeats
from ekd_nemo.records.atomic import write_text
from tools.study.plan import BASELINE
from tools.study.records import RECORDS, of_json

RESULTS = Path(__file__).with_name("RESULTS.md")
FINDINGS = Path(__file__).with_name("FINDINGS.md")
ORDER: Final = ("full", "slice", "short")  # plans, the one that says most first
BITS: Final = "python_docs_bits_per_byte"
LAST_WORD: Final = "python_docs_last_word"

Json = dict[str, Any]
Runs = Sequence[Json]


def write_table() -> None:
    """Write RESULTS.md beside the records."""
    write_text(RESULTS, table_of(read_records(RECORDS), FINDINGS.read_text(encoding="utf-8")))


def read_records(folder: Path) -> list[Json]:
    """The records of every plan that has run, in a fixed order."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return sorted(
        found, key=lambda r: (ORDER.index(r["plan"]) if r["plan"] in ORDER else 99, r["plan"])
    )


def table_of(records: Iterable[Json], findings: str) -> str:
    """The whole of RESULTS.md.

    Args:
        records: of each plan.
        findings: what a person concluded, in Markdown.
    """
    parts = [
        "# Does distillation pay? What was run, and what it showed",
        "Made by `python -m tools.study.table` from `tools/study/records/*.json`; do not edit. `plans.yaml` says "
        "what each plan asks; `FINDINGS.md`, which follows, was written by hand.",
        findings.strip(),
    ]
    for record in records:
        parts += plan_section(record)
    return "\n\n".join(part for part in parts if part) + "\n"


def plan_section(record: Json) -> list[str]:
    """All tables of one plan."""
    runs: Runs = record["runs"]
    if not runs:
        return [f"## Plan `{record['plan']}`", "No training of it has been finished."]
    return [
        f"## Plan `{record['plan']}`",
        extent(record),
        "### Held-out text\n\n" + held_out(runs),
        "### Against fine-tuning, seed by seed\n\n" + against_baseline(runs),
        "### Scores\n\n" + scores(runs),
        "### Against fine-tuning, item by item\n\n" + item_by_item(runs),
        "### Energy\n\n" + energies(runs, record["n_star"]),
        "### The first step\n\n" + first_steps(runs),
        "### Every run\n\n" + every_run(runs),
    ]


def extent(record: Json) -> str:
    """Exactly what was run of what was asked."""
    asked, runs = record["asked"], record["runs"]
    done = {label: [run["seed"] for run in runs if run["label"] == label] for label in labels(runs)}
    labels_asked = len(asked["methods"]) + len(asked["variants"])
    wanted = labels_asked * len(asked["seeds"]) + len(asked["live"])
    lines = [
        f"{len(runs)} of {wanted} runs are finished"
        + ("." if len(runs) == wanted else "; what is missing is not in the tables."),
        "",
        *(
            f"- {label}: seeds {', '.join(map(str, seeds))}; {_sizes(runs, label)}"
            for label, seeds in done.items()
        ),
        *(
            f"- {label} is {variant['method']} with `{' '.join(variant['set'])}`"
            for label, variant in asked["variants"].items()
        ),
        "",
        "Teacher: " + ("one cache of its hidden states." if asked["cache"] else "live in every run.")
        + f" Settings of all runs: `{' '.join(asked['set'])}`.",
        f"Scored: {sum(bool(run['scores']) for run in runs)} runs, at most "
        f"{asked['evaluation']['limit']} items a task.",
    ]  # fmt: skip
    machine = record["machine"]
    if machine:
        packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
        lines.append(f"On {', '.join(machine['devices'])}; Python {machine['python']}, {packages}.")
    return "\n".join(lines)


def _sizes(runs: Runs, label: str) -> str:
    found = {
        (rounded(run["figures"]["steps"]["value"]), rounded(run["figures"]["tokens"]["value"]))
        for run in runs
        if run["label"] == label
    }
    return "; ".join(f"{steps} steps, {tokens} tokens" for steps, tokens in sorted(found))


def labels(runs: Runs) -> list[str]:
    """The methods that ran, in the order of their first run."""
    return list(dict.fromkeys(run["label"] for run in runs))


def of_label(runs: Runs, label: str) -> Runs:
    """The repeats of a method."""
    return [run for run in runs if run["label"] == label]


def figure(run: Json, name: str) -> Quantity:
    """A figure of a run, missing where the record has none."""
    body = run["figures"].get(name)
    return of_json(body) if body else Quantity.missing("", "not recorded")


def score(run: Json, task: str, role: str = "student") -> Quantity:
    """A student's or the teacher's score on a task, missing until it is evaluated."""
    for one in run["scores"]:
        if one["task"] == task and one["role"] == role:
            return Quantity(one["value"])
    return Quantity.missing("", "not evaluated")


Pick = Callable[[Json], Quantity]
HELD_OUT: Final[tuple[tuple[str, Pick], ...]] = (
    ("cross-entropy (nats/token)", lambda run: figure(run, "val_ce")),
    ("KL to the teacher (nats/token)", lambda run: figure(run, "val_kl")),
    ("bits per byte", lambda run: score(run, BITS)),
    ("last words right", lambda run: score(run, LAST_WORD)),
)


def held_out(runs: Runs) -> str:
    """Mean and 95 % interval over the seeds."""
    rows = [
        [label, str(len(of_label(runs, label)))]
        + [_interval(map(pick, of_label(runs, label)), decimals(4)) for _, pick in HELD_OUT]
        for label in labels(runs)
    ]
    head = ["method", "runs", *(name for name, _ in HELD_OUT)]
    return _markdown(head, rows) + (
        "\n\nMean over seeds ± half of the 95 % t-interval of the mean; none from one run. Seeds change the order of "
        "the data and what is drawn at random; the held-out text is the same."
    )


def against_baseline(runs: Runs) -> str:
    """Differences of runs of one seed, and whether the seeds show one."""
    rows: list[list[str]] = []
    for label in labels(runs):
        if label == BASELINE:
            continue
        cells = [_paired(runs, label, pick) for _, pick in HELD_OUT]
        rows.append([label, *cells])
    head = ["method less sft", *(name for name, _ in HELD_OUT)]
    return _markdown(head, rows) + (
        "\n\nMean of the differences of runs of one seed ± half of its 95 % t-interval. **Bold**: the interval leaves "
        "0 out. Below 0 is better, but for last words."
    )


def _paired(runs: Runs, label: str, pick: Pick) -> str:
    base = {run["seed"]: run for run in of_label(runs, BASELINE)}
    pairs = [
        difference(pick(run), pick(base[run["seed"]]))
        for run in of_label(runs, label)
        if run["seed"] in base
    ]
    present = [pair for pair in pairs if pair.value is not None]
    mean = mean_of_repeats(present, "") if present else None
    if mean is None or mean.value is None:
        return "n/a"
    text = _interval(present, signed(4))
    shown = mean.low is not None and mean.high is not None and not mean.low <= 0 <= mean.high
    return f"**{text}**" if shown else text


def scores(runs: Runs) -> str:
    """Every task: the mean of the students of a method, the teacher, and what guessing gets."""
    scored = [run for run in runs if run["scores"]]
    if not scored:
        return "No run has been evaluated."
    tasks = list(dict.fromkeys((s["task"], s["metric"]) for run in scored for s in run["scores"]))
    rows = [
        [
            f"{task} ({metric})",
            *(_score_cell(of_label(scored, label), task, "student") for label in labels(scored)),
            _score_cell(scored[:1], task, "teacher"),
            _chance(scored, task),
            _items(scored, task),
        ]
        for task, metric in tasks
    ]
    head = ["task", *labels(scored), "teacher", "chance", "items"]
    return _markdown(head, rows) + (
        "\n\n`*`: near chance, within two standard errors (or 0.02) of what guessing gets, for at least one run. "
        "Bits per byte: less is better."
    )


def _score_cell(runs: Runs, task: str, role: str) -> str:
    found = [s for run in runs for s in run["scores"] if s["task"] == task and s["role"] == role]
    if not found:
        return "n/a"
    text = _interval((Quantity(s["value"]) for s in found), decimals(3))
    return text + ("*" if any(s["near_chance"] for s in found) else "")


def _chance(runs: Runs, task: str) -> str:
    found = {s["chance"] for run in runs for s in run["scores"] if s["task"] == task}
    known = sorted(value for value in found if value is not None)
    return f"{known[0]:.3f}" if known else "n/a"


def _items(runs: Runs, task: str) -> str:
    found = {s["items"] for run in runs for s in run["scores"] if s["task"] == task}
    return ", ".join(str(n) for n in sorted(n for n in found if n is not None)) or "n/a"


def item_by_item(runs: Runs) -> str:
    """What `ekd eval compare` says of each student against fine-tuning's of its seed."""
    rows = [
        [
            run["run_id"],
            f"{row['task']} ({row['metric']})",
            str(row["items"]),
            f"{row['difference']:+.4f}",
            "n/a" if row["low"] is None else f"{row['low']:+.4f}..{row['high']:+.4f}",
            "n/a" if row["p_value"] is None else f"{row['p_value']:.3f}",
            row["verdict"],
        ]
        for run in runs
        for row in run["against_sft"]
    ]
    if not rows:
        return "No two runs of one seed have been evaluated."
    head = ["run less sft", "task", "items", "difference", "95 % interval", "p", "verdict"]
    return _markdown(head, rows) + (
        "\n\nPaired over items: bootstrap interval, and the exact McNemar test where an item is right or wrong."
    )


def energies(runs: Runs, n_star: Sequence[Json]) -> str:
    """Energy of training and inference, the frontier, N* and T*."""
    uses = {row["label"]: of_json(row) for row in n_star}
    frontier = efficient(runs)
    rows = [
        [
            label,
            _energy_cell(runs, label, "e_run"),
            _energy_cell(runs, label, "e_charged"),
            _energy_cell(runs, label, "energy_per_token"),
            _energy_cell(runs, label, "ept_total"),
            _interval((figure(run, "val_kl") for run in of_label(runs, label)), decimals(4)),
            "yes" if label in frontier else "no",
            _plain(uses.get(label)),
            _interval((figure(run, "t_star") for run in of_label(runs, label)), rounded),
        ]
        for label in labels(runs)
    ]
    head = [
        "method", "E_run", "with the cache's share", "J per trained token", "J per token of inference",
        "KL (nats/token)", "on the frontier", "N* (uses)", "T* (tokens)",
    ]  # fmt: skip
    sources = sorted({str(figure(run, "e_run").source) for run in runs})
    text = f"\n\nSource of every joule: {', '.join(sources)}."
    if "estimated" in sources:
        text += (
            " Estimated from the processor's utilisation and a stated TDP: it counts whatever else the machine did "
            "meanwhile, and tells methods apart only where they ran alone."
        )
    text += (
        " On the frontier: no other method has both less energy and a lower KL. N*: uses of the cache after which it "
        "has paid. T*: tokens of inference after which the student's training has paid. n/a: not measured."
    )
    return _markdown(head, rows) + text


def efficient(runs: Runs) -> set[str]:
    """The methods that no other beats in mean energy and mean KL at once."""
    points: dict[str, tuple[float, float]] = {}
    for label in labels(runs):
        means = [
            mean_of_repeats([figure(run, name) for run in of_label(runs, label)], "").value
            for name in ("e_charged", "val_kl")
        ]
        if means[0] is not None and means[1] is not None:
            points[label] = (means[0], means[1])
    return {
        label
        for label, (cost, loss) in points.items()
        if not any(
            other_cost <= cost and other_loss <= loss and (other_cost, other_loss) != (cost, loss)
            for other_cost, other_loss in points.values()
        )
    }


def first_steps(runs: Runs) -> str:
    """What the objective is made of before anything is learned, by method and seed."""
    rows = [
        [
            run["run_id"],
            *(_plain(Quantity(run["first_step"][name])) for name in ("loss", "ce", "grad_norm")),
            ", ".join(
                f"{name} {rounded(value)}"
                for name, value in run["first_step"].items()
                if name not in ("loss", "ce", "grad_norm")
            )
            or "none",
        ]
        for run in runs
        if {"loss", "ce", "grad_norm"} <= set(run["first_step"])
    ]
    head = ["run", "objective", "cross-entropy", "gradient norm", "other terms, not weighted"]
    return _markdown(head, rows) + (
        "\n\nBefore clipping, at the same weights and, for one seed, on the same tokens: what a term adds to the "
        "gradient is the difference to sft's norm times the weight of its cross-entropy."
    )


def every_run(runs: Runs) -> str:
    """One row a run."""
    rows = [
        [
            run["run_id"],
            f"`{run['recipe_hash']}`",
            str(run["attempts"]),
            *(_plain(pick(run), decimals(4)) for _, pick in HELD_OUT),
            _plain(figure(run, "e_run"), energy),
        ]
        for run in runs
    ]
    head = ["run", "recipe", "attempts", *(name for name, _ in HELD_OUT), "E_run"]
    return _markdown(head, rows)


def _energy_cell(runs: Runs, label: str, name: str) -> str:
    return _interval((figure(run, name) for run in of_label(runs, label)), energy)


def _interval(values: Iterable[Quantity], show: Callable[[float], str]) -> str:
    """`mean ± half`, or the one value; n/a where there is none."""
    present = [Quantity(value.value) for value in values if value.value is not None]
    mean = mean_of_repeats(present, "")
    if mean.value is None:
        return "n/a"
    if mean.low is None or mean.high is None:
        return show(mean.value)
    return f"{show(mean.value)} ± {show((mean.high - mean.low) / 2).lstrip('+')}"


def _plain(quantity: Quantity | None, show: Callable[[float], str] = rounded) -> str:
    return "n/a" if quantity is None or quantity.value is None else show(quantity.value)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    sys.exit(write_table())
