"""Energy, quality and their ratios: pure functions over the records of run directories."""
