"""Values that flags accept and defaults of flags, in plain Python: `--help` must import neither JAX nor NumPy.

A test compares them with the modules that are named here.
"""

MODALITIES = ("ct", "mr")  # `data/preprocess.py`
INTERPOLATIONS = ("linear", "nearest", "bspline", "label")  # `data/sampling.py`
MIND = ("mind2012", "mind_ssc", "mind_ssc_near", "mind_ssc_robust", "mind_fixed")  # `ops/mind.py`
AFFINE_STEPS = ("none", "rigid", "affine")  # `register/alignment.py`
FORMATS = ("own", "nrrd", "mha", "mgz", "h5")  # `register/exports.py`
NO_NETWORK = "none"  # of --checkpoint
DEMO_FOLDER = "f3r_demo"  # `register/demo.py`
# Of `pipeline.Settings`
AFFINE = "affine"
REFINE = True
LAM = 0.2
PRESET = "mind_ssc"
DIFFEOMORPHIC = True
