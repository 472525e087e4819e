"""What a run leaves in its folder: its config and origin, checkpoints, the log, the trained network."""
