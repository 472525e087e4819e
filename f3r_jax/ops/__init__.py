"""Pure array functions: convolution, warp, fields, MIND, losses and instance optimisation.

Which interpolation for what. Six files implement trilinear interpolation, each for a different input:

    ops/warp.py                 Samples a volume at p + displacement(p): warps, composition, the training loss.
                                Separate: the gradient is written by hand, because autodiff takes twice as long.
    ops/quadratic.py            Samples feature volumes and their slopes, to linearise them for instance optimisation.
                                Separate: it reads the corners once for values and slopes, and only keeps sums.
    ops/pyramid.py              Resizes a displacement to a grid of another spacing, by any ratio (`resize`).
                                Separate: positions along an axis are regular, so it works axis by axis.
    models/layers.py            Upsamples network features by a whole factor (`upsample`).
                                Separate: matrix products, whose gradient is fast and which combine with pooling.
    data/affine/similarity.py   Samples intensities and mask at points that an affine map moves.
                                Separate: it takes a list of points, and autodiff gives the gradient of the map.
    data/resample.py            Samples an image file on the working grid, or a field on another grid.
                                Separate: NumPy and SciPy in threads, before or after any computation in JAX.

Label maps are sampled at the nearest voxel: `warp_nearest` in ops/warp.py, `resample_labels` in data/resample.py.
"""
