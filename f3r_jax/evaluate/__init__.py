"""Evaluation of runs on their test cases: `python -m f3r_jax.evaluate`."""
