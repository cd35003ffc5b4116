"""Every figure of a report, by section, in the order of the page."""

from typing import Final

from ekd_nemo.report import by_method, over_time, spread
from ekd_nemo.report.drawn import Plot

_BAND: Final = "Line: mean over a method's runs; band: one standard deviation across them."

SECTIONS: Final[dict[str, tuple[Plot, ...]]] = {
    "Energy": (
        Plot(
            "energy_views",
            "E_run of each method",
            "E_run: accelerators, from prerun through checkpoint. Own: the run alone; charged: with the whole making "
            "of what it read; amortised: with its share over the counted uses. Whiskers: 95 % interval of the mean.",
            by_method.energy_views,
        ),
        Plot(
            "energy_phases",
            "E_run by phase",
            "Mean over the runs of a method; phases and idle add up to E_run (own).",
            by_method.energy_phases,
        ),
        Plot(
            "energy_and_quality",
            "Energy and quality",
            "Small: a run; large: the mean of a method. Dashed: methods that no other beats in both. Charged, so that "
            "a cache is not free.",
            by_method.energy_and_quality,
        ),
    ),
    "Over time": (
        Plot("power_over_time", "Power over time", _BAND, over_time.power_over_time),
        Plot(
            "cumulative_energy",
            "Energy so far",
            f"{_BAND} Shaded, for several methods in a plot of each: the phases of the method's first run, as high as "
            "their share of the time.",
            over_time.cumulative_energy,
        ),
        Plot(
            "power_by_device",
            "Power of each accelerator",
            "The first run of each method that has more than one accelerator.",
            over_time.power_by_device,
        ),
        Plot("utilisation", "Utilisation", f"Mean over a run's accelerators. {_BAND}", over_time.utilisation),
        Plot("temperature", "Temperature", f"Mean over a run's accelerators. {_BAND}", over_time.temperature),
        Plot("memory", "Memory", f"Mean over a run's accelerators. {_BAND}", over_time.memory),
    ),
    "How power spreads": (
        Plot(
            "power_against_utilisation",
            "Power against utilisation",
            "A point: one accelerator in one stretch of time; at most 500 a method, evenly taken.",
            spread.power_against_utilisation,
        ),
        Plot(
            "power_distribution",
            "Distribution of power",
            "Share of time at each power, all runs of a method together.",
            spread.power_distribution,
        ),
        Plot(
            "power_of_runs",
            "Power of each run",
            "Box: quartiles and median; whiskers: 5 % and 95 %.",
            spread.power_of_runs,
        ),
    ),
    "Quality": (
        Plot(
            "scores",
            "Scores by task",
            "Point: mean over a method's runs with its 95 % interval; line: the teacher.",
            by_method.scores,
        ),
        Plot(
            "performance",
            "OM_perf",
            "OM_perf: mean over tasks of student / teacher. Above chance: mean of (s - c) / (t - c).",
            by_method.performance,
        ),
    ),
    "Inference": (
        Plot(
            "inference_energy",
            "Energy per token",
            "Energy of the whole inference benchmark over its input, generated and all tokens.",
            by_method.inference_energy,
        ),
        Plot(
            "efficiency",
            "Eff_overall",
            "OM_perf * EPT_total(teacher) / EPT_total(student); it says nothing of training energy.",
            by_method.efficiency,
        ),
    ),
}  # fmt: skip

FIGURES: Final[dict[str, Plot]] = {plot.name: plot for plots in SECTIONS.values() for plot in plots}
