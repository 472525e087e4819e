"""The settings of all configs: a small phantom study, or with the option "paper" the settings of the paper (Sec. 3.1).

A config file sets the model and lambda. Every other key is defined here.
"""

from collections.abc import Mapping

from ml_collections import ConfigDict, config_dict

from f3r_jax.common.errors import UserError

OPTIONS = ("", "paper")
SYN, INSTANCE = "syn", "instance"
SYNTHETIC = "synthetic"  # the value of data.source for synthetic pairs
UNTRAINED = (SYN, INSTANCE)
CT_WINDOW = (-160.0, 240.0)  # HU: soft tissue
MR_PERCENTILES = (1.0, 99.0)
ORGANS = {"liver": (1,), "spleen": (2,), "right_kidney": (3,), "left_kidney": (4,)}  # label values, as in Learn2Reg
# All protocols of the phantom, from `data/phantom/appearance.py`
CT_PHASES = ("venous", "plain")
MR_SEQUENCES = ("t2", "t2_fat_suppressed", "t1_fat_suppressed", "in_phase", "out_of_phase")
# Random changes of synthetic pairs. `data/synthesis/settings.py` describes the keys and their units.
SYNTHESIS = {
    "amplitude": 2.0,
    "start_amplitude": 0.5,
    "shift": 1.5,
    "breathing": 3.0,
    "rotation": 4.0,
    "scaling": 0.04,
    "shapes": 0.5,
    "ct": 0.3,
    "mr": 0.3,
    "blur": 0.8,
    "thick_slices": 1.5,
    "bias": 0.4,
    "gamma": 0.5,
    "noise": 0.06,
    "crop": 0.4,
    "clean_channels": 3,
    "clean_blur": 0.8,
}
AUGMENTATIONS = ("deformation", "rotation", "scaling", "shift", "gamma", "bias", "noise", "blur")
# Instance optimisation (`ops/instance_optimisation.py`) for voxels of about 5 mm, as in the phantom, and of 1 to 2 mm
COARSE_INSTANCE = {"mind": "mind_ssc_robust", "lam": 0.6, "spacings": (8, 4, 2, 1), "steps": 80, "diffeomorphic": True}
FINE_INSTANCE = {"mind": "mind_ssc", "lam": 0.2, "spacings": (16, 8, 4, 2), "steps": 80, "diffeomorphic": True}
# The same after a network, which has already found the large motion. `network_weight` is that of the network's
# displacement in the result; on fine grids it was not measured.
COARSE_AFTER_NETWORK = COARSE_INSTANCE | {"spacings": (2, 1), "network_weight": 0.2}
FINE_AFTER_NETWORK = FINE_INSTANCE | {"spacings": (4, 2), "network_weight": 0.0}
COARSE_VOXELS = 3.0  # mm: the coarse settings are used for voxels of this size or more
# Values implied by configs that were saved before these keys existed.
EARLIER = {
    "init": "",
    "model.diffeomorphic": False,
    "model.remat": False,
    "train.dtype": "float32",
    "train.crop": (0, 0, 0),
    "loss.similarity": "mind",
    "loss.second_similarity": "",
    "loss.second_after": 0.0,
    "loss.epe": 0.0,
    "loss.labels_weight": 0.0,
    "instance.network_weight": 0.0,
    "data.unoriented": "",
    "data.check_modality": True,
    "data.ct_phases": CT_PHASES,
    "data.mr_sequences": MR_SEQUENCES,
    **{f"augment.{name}": 0.0 for name in AUGMENTATIONS},
}


def network_config(*, option: str, lam: float, paper_lam: float, steps: int = 4000, **model: str) -> ConfigDict:
    """The config of a network that is trained.

    Args:
      option: "" for the phantom, in minutes on two cores; "paper" for the paper's settings on your own data.
      lam: weight of the gradient penalty on the phantom.
      paper_lam: weight of the gradient penalty with the option "paper".
      steps: of the training on the phantom.
      model: `name`, and for F3RNet `variant`.
    """
    config = _shared(option)
    paper = option == "paper"
    config.init = ""  # run, file of weights (.npz) or "builtin", from which training starts; "": random parameters

    config.model = ConfigDict(model)
    config.model.flow_init = 1e-5  # standard deviation of the last kernel; small, to start near the identity
    config.model.diffeomorphic = False  # whether the displacement is the exponential of the output, a velocity
    if config.model.name == "f3rnet":
        config.model.remat = False  # whether features are computed twice, which saves memory and takes more time

    config.loss = ConfigDict()
    config.loss.lam = paper_lam if paper else lam  # weight of the gradient penalty
    # "mind" (the paper's Eq. 4), "pooled_mind", or for synthetic pairs "clean": noise-free contrasts of both sides
    config.loss.similarity = "mind"
    # "mind" finds large motions from random parameters; "mind_and_pooled" is more exact once they are found; "": none
    config.loss.second_similarity = "" if paper else "mind_and_pooled"
    config.loss.second_after = 0.0 if paper else 0.5  # fraction of the steps, 0 to 1, after which it is used
    config.loss.mind = "mind_ssc" if paper else "mind_ssc_robust"  # a preset of `ops/mind.py`
    config.loss.epe = 0.0  # weight of the squared end-point error in voxels, for synthetic pairs
    config.loss.labels_weight = 0.0  # weight of the mean over data.organs of 1 - Dice; 0: labels only score

    # Random changes of each training pair (`train/augment.py`); 0 turns a change off.
    config.augment = ConfigDict()
    config.augment.deformation = 0.0 if paper else 2.0  # mm, smooth displacement of the moving volume
    config.augment.rotation = 0.0  # degrees about each axis
    config.augment.scaling = 0.0  # of the logarithm of the size
    config.augment.shift = 0.0  # mm
    config.augment.gamma = 0.0  # this and the following: intensities of the network's input
    config.augment.bias = 0.0
    config.augment.noise = 0.0
    config.augment.blur = 0.0

    config.optim = ConfigDict()
    config.optim.learning_rate = 1e-5 if paper else 1e-3
    config.optim.warmup_steps = 0 if paper else 100
    config.optim.decay = "constant" if paper else "cosine"  # "cosine" to zero at the last step, or "constant"
    config.optim.clip_norm = 1.0  # largest norm of the whole gradient

    config.train = ConfigDict()
    config.train.steps = 40_000 if paper else steps
    config.train.crop = (0, 0, 0) if paper else (48, 32, 32)  # size of the random part given to the network; 0: all
    config.train.batch_size = 1  # divided among the devices
    config.train.dtype = "float32"  # type of the features; "bfloat16" takes half the memory and is faster on a GPU
    config.train.validate_every = 1000 if paper else 500
    config.train.checkpoint_every = 500 if paper else 200
    config.train.keep_checkpoints = 3

    # Settings of `evaluate --refine`, after training
    config.instance = ConfigDict(FINE_AFTER_NETWORK if paper else COARSE_AFTER_NETWORK)
    return config


def synthetic_config(*, option: str, lam: float, **model: str) -> ConfigDict:
    """The config of a network that is trained on synthetic pairs and tested on the phantom."""
    if option:
        raise UserError(f"unknown option {option!r} of the config, expected none")
    config = network_config(option="", lam=lam, paper_lam=lam, steps=40_000, **model)
    config.data.source = SYNTHETIC
    config.data.ct_phases, config.data.mr_sequences = CT_PHASES, MR_SEQUENCES
    config.data.cases = 300  # anatomies; each pair has random motions and contrasts
    config.synthesis = ConfigDict(SYNTHESIS)
    config.synthesis.curriculum_steps = 5000  # steps in which the variety of pairs grows from standard pairs to all
    config.loss.similarity = "clean"
    config.loss.second_similarity, config.loss.second_after = "", 0.0
    config.loss.epe = 0.002
    config.augment.update(dict.fromkeys(AUGMENTATIONS, 0.0))  # the pairs already are random
    config.train.validate_every = 1000
    config.train.checkpoint_every = 250
    return config


def instance_config(*, option: str) -> ConfigDict:
    """The config of instance optimisation alone, which has no training."""
    config = _shared(option)
    config.model = ConfigDict({"name": INSTANCE})
    config.instance = ConfigDict(FINE_INSTANCE if option == "paper" else COARSE_INSTANCE)
    return config


def syn_config(*, option: str) -> ConfigDict:
    """The config of SyN, which has no training. Its last iterations use the full resolution."""
    config = _shared(option)
    config.model = ConfigDict({"name": SYN})

    config.syn = ConfigDict()
    config.syn.bins = 32  # of the joint histogram
    config.syn.iterations = (100, 70, 50)  # maximum at 1/4, 1/2 and full resolution
    config.syn.grad_step = 0.2
    config.syn.flow_sigma = 3.0  # voxels, smoothing of the update
    config.syn.total_sigma = 0.0  # voxels, smoothing of the whole field
    return config


def upgraded(config: ConfigDict) -> ConfigDict:
    """A copy of the config of a run, completed by the keys that were added after the run was started."""
    config = config.copy_and_resolve_references()
    if is_trained(config):
        known = network_config(option="", lam=0.0, paper_lam=0.0, name=config.model.name)
        if "instance" not in config:
            fine = min(config.data.spacing) < COARSE_VOXELS
            config.instance = ConfigDict(FINE_AFTER_NETWORK if fine else COARSE_AFTER_NETWORK)
    else:
        known = {SYN: syn_config, INSTANCE: instance_config}[config.model.name](option="")
    keys = flatten(known.to_dict())
    for key, value in EARLIER.items():
        section, _, name = key.rpartition(".")
        if key not in keys:
            continue
        if section and section not in config:
            config[section] = ConfigDict()
        part = config[section] if section else config
        if name not in part:
            part[name] = value
    return config


def check_seed(config: ConfigDict) -> None:
    """Raises a UserError for a seed that random generators do not accept."""
    if not isinstance(config.seed, int) or not 0 <= config.seed < 2**32:
        raise UserError(f"seed is {config.seed!r}, expected a whole number from 0 to {2**32 - 1}")


def is_trained(config: ConfigDict) -> bool:
    """Whether the method is trained; SyN and instance optimisation are not."""
    return config.model.name not in UNTRAINED


def _shared(option: str) -> ConfigDict:
    if option not in OPTIONS:
        raise UserError(f"unknown option {option!r} of the config, expected none or 'paper'")
    paper = option == "paper"
    config = ConfigDict()
    config.seed = 0

    config.data = ConfigDict()
    config.data.source = "nifti" if paper else "phantom"
    # The folder of the NIfTI pairs, or the folder to which the phantom is written.
    config.data.root = config_dict.placeholder(str) if paper else "runs/data"
    config.data.shape = (144, 144, 128) if paper else (64, 48, 48)
    config.data.spacing = (1.0, 1.0, 1.0) if paper else (4.8, 4.8, 4.8)  # mm
    config.data.direction = "ct_to_mr"  # or "mr_to_ct"
    config.data.cases = 0 if paper else 184  # number of phantom cases; for NIfTI pairs 0 means all
    config.data.validation_cases = 0 if paper else 8
    config.data.test_cases = 10 if paper else 16
    # Protocols of the phantom's cases. The default is one of each, as in a study of a single hospital.
    config.data.ct_phases = CT_PHASES[:1]
    config.data.mr_sequences = MR_SEQUENCES[:1]
    config.data.initialisation = "header"  # or "body_centre", "rigid", "affine"; the last two optimise MIND per pair
    config.data.unoriented = ""  # axes of NIfTI files without orientation codes, such as "RAS"; "": refused
    config.data.check_modality = True  # whether intensities that contradict a pair's modalities are an error
    config.data.ct_window = CT_WINDOW
    config.data.mr_percentiles = MR_PERCENTILES
    config.data.organs = ConfigDict(ORGANS)
    return config


def flatten(tree: Mapping, prefix: str = "") -> dict[str, object]:
    """The values of a config by their dotted keys."""
    values: dict[str, object] = {}
    for key, value in tree.items():
        values |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return values
