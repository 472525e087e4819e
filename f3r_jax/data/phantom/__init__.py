"""The built-in phantom: random abdomens with exact ground truth."""
