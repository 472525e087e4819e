"""What the commands of `launch/` share: their arguments, the runs of a study and where they are computed."""
