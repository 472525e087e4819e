"""F3RNet-MRB, CT to MR: factorised in both streams, with two extra MRBs; the paper's best network.

python -m f3r_jax.main --config=configs/mrb.py --workdir=runs/mrb
    on the phantom: 30 training cases of 64 x 48 x 48 voxels of 4.8 mm. On two cores 8 minutes and 3 GB, the making of
    the phantom and the evaluation included. Expect a mean Dice of 83 % (76.8 before), 88 % in the liver (76.9 before),
    and no folding.
python -m f3r_jax.main --config=configs/mrb.py:paper --config.data.root=/data/pairs --workdir=runs/mrb_paper
    the paper's setting on own data: 144 x 144 x 128 voxels of 1 mm, Adam at 1e-5, batch 1, lambda 1.5. The paper names
    no number of steps: 40,000 are a thousand rounds through its 40 training cases, days on a CPU. On its private data
    it reports a Dice of 86.8 % in the liver, 85.4 % in the spleen and 83.2 % in the kidneys.
"""

from ml_collections import ConfigDict, config_dict


def get_config(option: str = "") -> ConfigDict:
    """The default trains on the phantom in minutes on two cores; "paper" is the paper's setting (Sec. 3.1)."""
    config = ConfigDict()
    config.seed = 0

    config.model = ConfigDict()
    config.model.name = "f3rnet"
    config.model.variant = "mrb"
    config.model.flow_init = 1e-5  # standard deviation of the last kernel: training starts from the identity

    config.loss = ConfigDict()
    config.loss.lam = 0.5  # weight of the gradient penalty
    config.loss.mind = "mind_ssc_near"  # or "mind2012", "mind_ssc", "mind_fixed"

    config.optim = ConfigDict()
    config.optim.learning_rate = 5e-4
    config.optim.warmup_steps = 10
    config.optim.decay = "cosine"  # "cosine" to zero at the last step, or "constant"
    config.optim.clip_norm = 1.0  # of the whole gradient

    config.train = ConfigDict()
    config.train.steps = 220
    config.train.batch_size = 1
    config.train.validate_every = 55
    config.train.checkpoint_every = 20
    config.train.keep_checkpoints = 3

    config.data = ConfigDict()
    config.data.source = "phantom"  # "phantom" or "nifti"
    config.data.root = "runs/data"  # where the phantom is kept, or the folder of the NIfTI pairs
    config.data.shape = (64, 48, 48)
    config.data.spacing = (4.8, 4.8, 4.8)  # mm
    config.data.direction = "ct_to_mr"  # or "mr_to_ct"
    config.data.cases = 40  # of the phantom; of NIfTI pairs 0 means all
    config.data.validation_cases = 2
    config.data.test_cases = 8
    config.data.initialisation = "header"  # or "body_centre", for scans in unrelated frames
    config.data.ct_window = (-160.0, 240.0)  # HU
    config.data.mr_percentiles = (1.0, 99.0)
    config.data.organs = ConfigDict({"liver": (1,), "spleen": (2,), "right_kidney": (3,), "left_kidney": (4,)})

    if option == "paper":
        config.loss.lam = 1.5
        config.loss.mind = "mind_ssc"
        config.optim.learning_rate = 1e-5
        config.optim.warmup_steps = 0
        config.optim.decay = "constant"
        config.train.steps = 40_000
        config.train.validate_every = 1000
        config.train.checkpoint_every = 500
        config.data.source = "nifti"
        config.data.root = config_dict.placeholder(str)
        config.data.shape = (144, 144, 128)
        config.data.spacing = (1.0, 1.0, 1.0)
        config.data.cases = 0
        config.data.validation_cases = 0
        config.data.test_cases = 10
    elif option:
        raise ValueError(f"configs/mrb.py: unknown option {option!r}, expected none or 'paper'")
    return config
