"""Evaluation harnesses inside the worker process: the only importer of lm-eval."""
