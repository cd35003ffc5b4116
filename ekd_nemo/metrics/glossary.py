"""What the flags mean, and how the figures are called and defined: one line each."""

from typing import Final

FLAGS: Final[dict[str, str]] = {
    "apportioned": "phases shorter than 1 s: energy shared out by time over blocks of at least 60 s",
    "bad_lines": "lines that are no records were skipped",
    "counter_factor_1000": "counter and integral differ by a factor of 1000",
    "counter_divided_by_1000": "imported counters were 1000 times too large and were corrected",
    "counter_integral_differ": "counter and power integral differ by more than 1 %",
    "counter_reset": "an energy counter was reset; power samples bridge the reset",
    "counter_stuck": "an energy counter stood still and was left out",
    "device_without_samples": "a device that a rank occupied was never sampled",
    "few_repeats": "fewer than three repeats",
    "gaps_bridged_by_counter": "energy inside gaps is from the counter",
    "imported": "imported records: one phase, the wall clock's times, no idle power or limit known",
    "instant_power": "instant power, as the device gives no average",
    "log_and_marks_disagree": "tokens differ between logs/train.jsonl and the marks (marks taken)",
    "lost_steps": "a crash undid steps; their energy counts, their tokens do not",
    "low_coverage": "samples cover less than 99 % of the time; see the bounds",
    "mig": "the device is split (MIG); figures are of the whole GPU",
    "missing_repeats": "not every repeat has this figure",
    "other_boards": "student and teacher were benchmarked on different boards: +-5 % each, not cancelled",
    "other_dtype": "student and teacher were benchmarked in different precisions",
    "scores_not_comparable": "student and teacher were not asked the same",
    "tasks_without_partner": "tasks that only one of student and teacher has were left out",
    "teacher_near_chance": "the teacher is at or near chance on a task",
    "tokens_disagree": "ranks of one replica marked different tokens (largest taken)",
    "torn_lines": "lines cut by a kill were skipped",
    "unbalanced_marks": "phases were not ended in order",
    "without_pue": "carbon and cost are of the accelerators' energy alone: no PUE was given",
    "unclosed_attempt": "a killed attempt: its last phase ends at the last sample",
    "unequal_tokens": "trained on different numbers of tokens",
}
