"""The schemas and append-only stores of a run directory."""
