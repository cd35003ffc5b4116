"""Evaluation without torch: what to run, where results go, how they are read; `ekd_nemo.harness` runs it."""
