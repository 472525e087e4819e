"""Data: NIfTI files, preprocessing, transforms, the phantom, synthetic pairs and data sets of pairs."""
