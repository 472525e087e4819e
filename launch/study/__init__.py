"""Shared code of the commands in `launch/`: arguments, the runs of a study, and where they run."""
