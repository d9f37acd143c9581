"""Kernels: Python that remembers, one for each session, kept apart from all else. `tools.outcomes` is their face."""
