"""Tests that start several gloo ranks."""
