"""F3RNet in JAX: learned multimodal deformable registration of CT and MR volumes.

Map of the package:

    apply       Warps an image, labels or points with the result of a registration: `python -m f3r_jax.apply`.
    benchmark   Measures speed and memory: `python -m f3r_jax.benchmark`.
    common      Helpers of all commands: errors, command line, progress, files, versions, compilation cache.
    config      The settings of all configs, for the phantom and for the paper's data.
    data        NIfTI files, preprocessing, affine initialisation, transforms, the phantom, synthetic pairs, data sets.
    evaluate    Scores a run on its test cases: `python -m f3r_jax.evaluate`.
    main        Trains the network of a config and evaluates it: `python -m f3r_jax.main`.
    models      The networks: F3RNet and its variants, FAIM, VoxelMorph, diffeomorphic output.
    ops         Pure array functions: convolution, warp, fields, MIND, losses, instance optimisation.
    register    Registers one pair of scans or a table of pairs: `python -m f3r_jax.register`.
    report      Compares the runs of a study on one page: `python -m f3r_jax.report`.
    train       Training: batches, augmentation, the training step, the loop, validation.
    workdir     Files of a run: config, origin, checkpoints, log, trained network.
"""

__version__ = "0.1.0"
