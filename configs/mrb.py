"""F3RNet-MRB, CT to MR: factorised in both streams, with two extra MRBs; the paper's best network.

python -m f3r_jax.main --config=configs/mrb.py
    On the phantom: 160 training cases of 64 x 48 x 48 voxels of 4.8 mm, 4,000 steps on parts of 48 x 32 x 32 voxels. It
    takes 31 minutes of CPU time and less than 3 GB, including the phantom and the evaluation. Expect a mean Dice of
    88 % (79 % before, 78 % with the network's mean field) and a correlation with the ground truth of 0.86.
python -m f3r_jax.main --config=configs/mrb.py:paper --config.data.root=/data/pairs
    The paper's settings on your own data: 144 x 144 x 128 voxels of 1 mm, Adam at 1e-5, batch size 1, lambda 1.5. The
    paper does not give the number of steps. 40,000 steps are a thousand epochs of its 40 training cases and take days
    on a CPU. On its private data the paper reports a Dice of 86.8 % in the liver, 85.4 % in the spleen and 83.2 % in
    the kidneys.
"""

from ml_collections import ConfigDict

from f3r_jax.config import network_config


def get_config(option: str = "") -> ConfigDict:
    """The default trains on the phantom in minutes on two cores; "paper" sets the paper's settings (Sec. 3.1)."""
    return network_config(option=option, name="f3rnet", variant="mrb", lam=0.8, paper_lam=1.5)
