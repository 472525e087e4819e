"""Affine registration with MIND descriptors, from coarse to fine."""
