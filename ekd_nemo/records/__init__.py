"""The schemas and append-only stores of a run directory.

- `rundir`: where everything of a run lies.
- `identity`, `capture`: run.json: what the run is, and the facts of each launch, without secrets.
- `lines`, `parse`: every kind of line of telemetry and marks files, typed and checked.
- `jsonl`: the append-only store, and the reader that survives whatever is in a file.
- `segments`: the same lines as Parquet, once a file has grown long.
- `clock`, `phases`, `gaps`: node, boot and monotonic time; the phases of a run; what a gap is.
- `atomic`: whole files or none.

Integers carry their unit in the name (`e_mj`, `p_avg_mw`, `t_mono_ns`); what was not measured is null, never 0.
Monotonic times compare only within one node and boot, counters only within one device and sampler.
"""
