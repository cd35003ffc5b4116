"""Meters: nvml, rapl, estimate and replay behind one protocol."""
