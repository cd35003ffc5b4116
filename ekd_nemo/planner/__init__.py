"""Memory, FLOPs, time and energy of a layout: computed, not measured; pure functions of recipe and cluster."""
