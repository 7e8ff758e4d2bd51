"""Corpora: sources, cleaning, packing and the embedded microworld."""
