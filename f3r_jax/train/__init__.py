"""Unsupervised training: batches, augmentation, the jitted step, the loop and its record."""
