"""Figures and the self-contained HTML report: the same summaries and profiles as the tables."""
