"""Training: batches, augmentation, the jitted step, the loop, its record and validation."""
