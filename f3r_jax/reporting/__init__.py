"""What `f3r_jax.report` is made of: reading runs, comparing methods, words, figures and pages."""
