"""Bytes that were counted on the smoke pair, MB by part in the order of `PARTS`, on the rank that held most.

2026-11-22, torch 2.13.0, megatron-core 0.15.3, two CPU cores; tests/distributed/test_planned_memory.py counts again.
"""

# (case, who) -> student, teacher, gradients, optimizer, activations, loss, outputs
COUNTED_MB: dict[tuple[str, str], tuple[float, ...]] = {
    ("shared, PP 2", "student"): (169.9, 325.7, 169.9, 339.8, 111.7, 214.8, 3.6),
    ("no teacher", "student"): (226.5, 0.0, 226.5, 453.1, 215.9, 211.8, 0.0),
    ("shared", "student"): (226.5, 538.1, 226.5, 453.1, 215.6, 214.8, 2.5),
    ("shared, microbatches of 1", "student"): (226.5, 538.1, 226.5, 453.1, 226.6, 113.2, 2.5),
    ("shared, selective", "student"): (226.5, 538.1, 226.5, 453.1, 211.8, 214.8, 2.5),
    ("shared, full", "student"): (226.5, 538.1, 226.5, 453.1, 226.6, 113.2, 2.5),
    ("shared, combined losses", "student"): (230.5, 538.1, 230.5, 461.0, 225.5, 214.8, 9.1),
    ("shared, DP 2", "student"): (226.5, 538.1, 226.5, 453.1, 215.6, 214.8, 1.3),
    ("shared, TP 3", "student"): (75.5, 179.4, 75.5, 151.1, 113.3, 109.2, 2.5),
    ("relaid, DP 2, teacher PP 2", "student"): (226.5, 325.7, 226.5, 453.1, 215.8, 214.8, 114.4),
    ("split 1+1", "student"): (226.5, 0.0, 226.5, 453.1, 215.9, 214.8, 115.5),
}
