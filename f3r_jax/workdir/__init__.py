"""Files in the folder of a run: config, origin, checkpoints, log, trained network."""
