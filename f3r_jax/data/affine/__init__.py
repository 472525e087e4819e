"""Affine registration by MIND, from coarse to fine."""
