"""The per-node sampler process, the marks API and the Prometheus exporter."""
