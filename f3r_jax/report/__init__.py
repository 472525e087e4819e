"""The report of a study, a page that compares its runs: `python -m f3r_jax.report`."""
