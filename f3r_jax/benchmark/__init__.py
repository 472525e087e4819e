"""Measures speed and memory: `python -m f3r_jax.benchmark`."""
