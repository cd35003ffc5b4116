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
    ("shared, TP 3, SP", "student"): (75.5, 179.4, 75.5, 151.1, 76.8, 111.5, 1.0),
    ("relaid, DP 2, teacher PP 2", "student"): (226.5, 325.7, 226.5, 453.1, 215.8, 214.8, 114.4),
    ("relaid, TP 3, SP, teacher PP 3", "student"): (75.5, 254.9, 75.5, 151.1, 77.0, 111.5, 38.5),
    ("cached, hidden, PP 2", "student"): (171.2, 0.0, 171.2, 342.4, 115.3, 211.8, 6.6),
    ("cached, top-k", "student"): (226.5, 0.0, 226.5, 453.1, 215.9, 212.8, 2.2),
    ("cached, top-k, TP 3, SP", "student"): (75.5, 0.0, 75.5, 151.1, 77.0, 137.3, 2.2),
    ("split 1+1", "student"): (226.5, 0.0, 226.5, 453.1, 215.9, 214.8, 115.5),
    ("split 1+1", "teacher"): (0.0, 538.1, 0.0, 0.0, 0.0, 0.0, 21.2),
    ("split 2+1, PP 2", "student"): (169.9, 0.0, 169.9, 339.8, 112.0, 214.8, 115.5),
    ("split 2+1, PP 2", "teacher"): (0.0, 538.1, 0.0, 0.0, 0.0, 0.0, 21.2),
    ("shared, PP 2 interleaved", "student"): (169.9, 325.7, 169.9, 339.8, 84.9, 214.2, 3.1),
    ("shared, PP 2, full", "student"): (169.9, 325.7, 169.9, 569.8, 2.3, 0.0, 3.6),
    ("relaid, PP 2, teacher DP 2", "student"): (169.9, 538.1, 169.9, 339.8, 112.0, 214.8, 115.5),
    ("split 1+2", "student"): (226.5, 0.0, 226.5, 453.1, 215.9, 214.8, 115.5),
    ("split 1+2", "teacher"): (0.0, 325.7, 0.0, 0.0, 0.0, 0.0, 19.5),
    ("shared, bf16", "student"): (113.3, 269.0, 226.5, 679.6, 117.9, 266.5, 1.4),
    ("shared, TP 3, SP, full", "student"): (75.5, 179.4, 75.5, 151.1, 5.2, 111.5, 1.0),
}
