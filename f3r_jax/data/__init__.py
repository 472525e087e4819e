"""Where volumes come from: NIfTI files, preprocessing, the phantom, data sets of pairs."""
