"""Tests that need an NVIDIA GPU: `python -m pytest -m gpu tests/gpu`; elsewhere they skip and say so."""
