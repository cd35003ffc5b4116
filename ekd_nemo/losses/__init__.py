"""Distillation losses: torch only, process groups passed in, sums and counts given back."""
