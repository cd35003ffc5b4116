"""Texts before tokenisation: documents, where they come from, and which are held out. No torch."""
