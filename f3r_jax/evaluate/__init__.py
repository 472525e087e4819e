"""Scores systems on the test cases of a run: `python -m f3r_jax.evaluate`."""
