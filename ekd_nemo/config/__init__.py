"""Strict models of recipe, data build and model architecture, and how YAML becomes them."""
