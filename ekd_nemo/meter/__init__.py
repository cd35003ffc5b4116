"""Meters: nvml, dcgm, rapl, hwmon, estimate and replay behind one protocol."""
