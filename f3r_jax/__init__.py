"""F3RNet in JAX: learned multimodal deformable registration of CT and MR volumes.

`f3r_jax.register(fixed, moving)` registers two scans, and `f3r_jax.load(folder)` loads a result. Importing `f3r_jax`
imports neither JAX nor NumPy; the first call does.

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

import importlib
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from f3r_jax.register.api import Result

__version__ = "0.1.0"


def register(fixed: Any, moving: Any, **options: Any) -> "Result":
    """Registers a moving scan to a fixed scan.

    Scans, masks and label maps are paths of any format that the command reads, images of NiBabel, SimpleITK or ANTs, or
    pairs of an array (x y z) and an affine: 4 x 4, voxels to mm, RAS+.

    Args:
      fixed: the fixed scan, whose grid the result has.
      moving: the moving scan, which is warped.
      **options: the flags of `python -m f3r_jax.register` without dashes, and these:

        - `output`: a folder for the files of the result; by default a temporary one that ends with the result.
        - `overwrite`: whether an older result there is replaced.
        - `progress`: called with one line of text after each stage; nothing is printed without it.
        - `fixed_landmarks`, `moving_landmarks`: a path, or an array (n 3) in mm, RAS+.

    Returns:
      The result: `warped`, `displacement` (mm), `affine`, `summary`, `verdict`, and the methods `apply`, `map_points`
      and `save`.

    Raises:
      f3r_jax.common.errors.UserError: scans that cannot be read or registered; the message is one line.
      TypeError: an unknown option.
    """
    from f3r_jax.register import api

    return api.register(fixed, moving, **options)


def load(folder: Any) -> "Result":
    """The result in a folder that a registration wrote; raises a UserError if it holds none that is complete."""
    from f3r_jax.register import api

    return api.load(folder)


_function = register


class _CallablePackage(types.ModuleType):
    """The package `f3r_jax.register`, which can be called as the function of the same name."""

    def __call__(self, fixed: Any, moving: Any, **options: Any) -> "Result":
        return _function(fixed, moving, **options)


# At its first import, Python sets a package as an attribute of its parent: here in place of the function.
_package = importlib.import_module("f3r_jax.register")
_package.__class__, _package.__doc__ = _CallablePackage, _function.__doc__
