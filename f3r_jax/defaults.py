"""The settings that the configs share: a small phantom study, and the paper's (Sec. 3.1) under the option "paper".

A config states what is its own, the system and its lambda; whatever is in neither place doesn't exist.
"""

from ml_collections import ConfigDict, config_dict

from f3r_jax.errors import UserError

OPTIONS = ("", "paper")
SYN, INSTANCE = "syn", "instance"
UNTRAINED = (SYN, INSTANCE)
CT_WINDOW = (-160.0, 240.0)  # HU: soft tissue
MR_PERCENTILES = (1.0, 99.0)
ORGANS = {"liver": (1,), "spleen": (2,), "right_kidney": (3,), "left_kidney": (4,)}  # label values, as in Learn2Reg
# The phantom's, `data/phantom_appearance.py`
CT_PHASES = ("venous", "plain")
MR_SEQUENCES = ("t2", "t2_fat_suppressed", "t1_fat_suppressed", "in_phase", "out_of_phase")
# What a config from before a key meant by leaving it out.
# How synthetic pairs are drawn (`data/synthesis/settings.py` has the units)
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
# Instance optimisation (`refine.py`): at voxels of about 5 mm, as the phantom has, and at 1 to 2 mm
COARSE_INSTANCE = {"mind": "mind_ssc_robust", "lam": 0.4, "spacings": (8, 4, 2), "steps": 80, "diffeomorphic": True}
FINE_INSTANCE = {"mind": "mind_ssc", "lam": 0.2, "spacings": (16, 8, 4, 2), "steps": 80, "diffeomorphic": True}
# A network has found the large motion
COARSE_AFTER_NETWORK = COARSE_INSTANCE | {"spacings": (2,)}
FINE_AFTER_NETWORK = FINE_INSTANCE | {"spacings": (4, 2)}
COARSE_VOXELS = 3.0  # mm, from which on the first is taken
EARLIER = {
    "model.diffeomorphic": False,
    "model.remat": False,
    "train.dtype": "float32",
    "train.crop": (0, 0, 0),
    "loss.similarity": "mind",
    "loss.second_similarity": "",
    "loss.second_after": 0.0,
    "loss.epe": 0.0,
    "data.ct_phases": CT_PHASES,
    "data.mr_sequences": MR_SEQUENCES,
    **{f"augment.{name}": 0.0 for name in AUGMENTATIONS},
}


def network_config(*, option: str, lam: float, paper_lam: float, **model: str) -> ConfigDict:
    """The config of a network that is trained.

    Args:
      option: "" for the phantom in minutes on two cores, "paper" for the paper's setting on own data.
      lam: weight of the gradient penalty on the phantom.
      paper_lam: the same with the option "paper".
      model: `name`, and for F3RNet `variant`.
    """
    config = _shared(option)
    paper = option == "paper"

    config.model = ConfigDict(model)
    config.model.flow_init = 1e-5  # standard deviation of the last kernel: training starts from the identity
    config.model.diffeomorphic = False  # the output is a velocity, its exponential the displacement
    if config.model.name == "f3rnet":
        config.model.remat = False  # less memory in training for more time: features are computed twice

    config.loss = ConfigDict()
    config.loss.lam = paper_lam if paper else lam  # weight of the gradient penalty
    # "mind" (the paper's Eq. 4), "pooled_mind", or "clean" for synthetic pairs: contrasts that both sides share
    config.loss.similarity = "mind"
    # "mind" finds large motions from random parameters; "mind_and_pooled" is more exact once they are found. "": none
    config.loss.second_similarity = "" if paper else "mind_and_pooled"
    config.loss.second_after = 0.0 if paper else 0.5  # part of the steps, 0 to 1, after which it takes over
    config.loss.mind = "mind_ssc" if paper else "mind_ssc_robust"  # a preset of `ops/mind.py`
    config.loss.epe = 0.0  # weight of the squared end-point error in voxels, for synthetic pairs

    config.augment = ConfigDict()  # random changes of each training pair, on the device; 0 turns one off
    config.augment.deformation = 0.0 if paper else 2.0  # mm, of a smooth displacement of the moving volume
    config.augment.rotation = 0.0  # degrees about each axis
    config.augment.scaling = 0.0  # of the logarithm of the size
    config.augment.shift = 0.0  # mm
    config.augment.gamma = 0.0  # intensities that the network sees, from here on
    config.augment.bias = 0.0
    config.augment.noise = 0.0
    config.augment.blur = 0.0

    config.optim = ConfigDict()
    config.optim.learning_rate = 1e-5 if paper else 1e-3
    config.optim.warmup_steps = 0 if paper else 100
    config.optim.decay = "constant" if paper else "cosine"  # "cosine" to zero at the last step, or "constant"
    config.optim.clip_norm = 1.0  # of the whole gradient

    config.train = ConfigDict()
    config.train.steps = 40_000 if paper else 4000
    config.train.crop = (0, 0, 0) if paper else (48, 32, 32)  # voxels of each volume that a step sees; 0: all
    config.train.batch_size = 1  # divided among the devices
    config.train.dtype = "float32"  # of the features, or "bfloat16", half the memory and faster on a GPU
    config.train.validate_every = 1000 if paper else 500
    config.train.checkpoint_every = 500 if paper else 200
    config.train.keep_checkpoints = 3

    # Of `evaluate --refine`, after the training
    config.instance = ConfigDict(FINE_AFTER_NETWORK if paper else COARSE_AFTER_NETWORK)
    return config


def synthetic_config(*, option: str, lam: float, **model: str) -> ConfigDict:
    """The config of a network that is trained on synthetic pairs, and tested on the phantom."""
    if option:
        raise UserError(f"unknown option {option!r} of the config, expected none")
    config = network_config(option="", lam=lam, paper_lam=lam, **model)
    config.data.source = "synthetic"
    config.data.ct_phases, config.data.mr_sequences = CT_PHASES, MR_SEQUENCES
    config.data.cases = 300  # anatomies; each step draws motions and contrasts for one
    config.synthesis = ConfigDict(SYNTHESIS)
    config.synthesis.curriculum_steps = 5000  # in which pairs grow from standard ones to all that is drawn
    config.loss.similarity = "clean"
    config.loss.second_similarity, config.loss.second_after = "", 0.0
    config.loss.epe = 0.002
    config.augment.update(dict.fromkeys(AUGMENTATIONS, 0.0))  # the pairs are random themselves
    config.train.steps = 40_000
    config.train.validate_every = 1000
    config.train.checkpoint_every = 250
    return config


def instance_config(*, option: str) -> ConfigDict:
    """The config of instance optimisation alone, which is only evaluated."""
    config = _shared(option)
    config.model = ConfigDict({"name": INSTANCE})
    config.instance = ConfigDict(FINE_INSTANCE if option == "paper" else COARSE_INSTANCE)
    return config


def syn_config(*, option: str) -> ConfigDict:
    """The config of SyN, which is only evaluated: iterations and smoothing that use the full resolution."""
    config = _shared(option)
    config.model = ConfigDict({"name": SYN})

    config.syn = ConfigDict()
    config.syn.bins = 32  # of the joint histogram
    config.syn.iterations = (100, 70, 50)  # at most, at 1/4, 1/2 and the full resolution
    config.syn.grad_step = 0.2
    config.syn.flow_sigma = 3.0  # voxels, of the update
    config.syn.total_sigma = 0.0  # of the whole field
    return config


def completed(config: ConfigDict) -> ConfigDict:
    """A copy of the config of a run, with the keys that have come since the run was started."""
    config = config.copy_and_resolve_references()
    if trains(config):
        known = network_config(option="", lam=0.0, paper_lam=0.0, name=config.model.name)
        if "instance" not in config:
            fine = min(config.data.spacing) < COARSE_VOXELS
            config.instance = ConfigDict(FINE_AFTER_NETWORK if fine else COARSE_AFTER_NETWORK)
    else:
        known = {SYN: syn_config, INSTANCE: instance_config}[config.model.name](option="")
    for key, value in EARLIER.items():
        section, name = key.split(".")
        if section not in known or name not in known[section]:
            continue
        if section not in config:
            config[section] = ConfigDict()
        if name not in config[section]:
            config[section][name] = value
    return config


def trains(config: ConfigDict) -> bool:
    """Whether the system has something to train: SyN and instance optimisation have not."""
    return config.model.name not in UNTRAINED


def _shared(option: str) -> ConfigDict:
    if option not in OPTIONS:
        raise UserError(f"unknown option {option!r} of the config, expected none or 'paper'")
    paper = option == "paper"
    config = ConfigDict()
    config.seed = 0

    config.data = ConfigDict()
    config.data.source = "nifti" if paper else "phantom"
    # Where the phantom is kept, or the folder of the NIfTI pairs.
    config.data.root = config_dict.placeholder(str) if paper else "runs/data"
    config.data.shape = (144, 144, 128) if paper else (64, 48, 48)
    config.data.spacing = (1.0, 1.0, 1.0) if paper else (4.8, 4.8, 4.8)  # mm
    config.data.direction = "ct_to_mr"  # or "mr_to_ct"
    config.data.cases = 0 if paper else 184  # of the phantom; of NIfTI pairs 0 means all
    config.data.validation_cases = 0 if paper else 8
    config.data.test_cases = 10 if paper else 16
    # Of the phantom: the protocols that its cases are drawn from. One of each, as in the study of a single hospital.
    config.data.ct_phases = CT_PHASES[:1]
    config.data.mr_sequences = MR_SEQUENCES[:1]
    config.data.initialisation = "header"  # or "body_centre", "rigid", "affine"; the last two fit each pair by MIND
    config.data.ct_window = CT_WINDOW
    config.data.mr_percentiles = MR_PERCENTILES
    config.data.organs = ConfigDict(ORGANS)
    return config
