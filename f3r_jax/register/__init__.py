"""Registration of pairs of scans: `python -m f3r_jax.register`."""
