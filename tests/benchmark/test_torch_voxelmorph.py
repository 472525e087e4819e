import numpy as np
import pytest

SHAPE = (17, 20, 40)


def test_parameter_count_is_that_of_six_scales_of_16_channels(torch_voxelmorph):
    first, down, up, out, flow = 2 * 16 * 27 + 16, 16 * 16 * 27 + 16, 32 * 16 * 27 + 16, 16 * 3 + 3, 3 * 3 * 27 + 3
    model = torch_voxelmorph.network(SHAPE)
    assert sum(p.numel() for p in model.parameters()) == first + 5 * down + 5 * up + out + flow == 105_017


@pytest.mark.parametrize("shape", [SHAPE, (32, 32, 32)])
def test_field_has_the_shape_of_the_volumes(torch, torch_voxelmorph, shape):
    with torch.inference_mode():
        assert torch_voxelmorph.network(shape)(*torch.rand(2, 1, 1, *shape)).shape == (1, 3, *shape)


def test_padding_repeats_the_last_voxels(torch, torch_voxelmorph):
    torch.manual_seed(0)
    moving, fixed = volumes = torch.rand(2, 1, 1, *SHAPE)
    padded = [np.pad(volume[0, 0], [(0, 15), (0, 12), (0, 24)], mode="edge")[None, None] for volume in volumes]
    model = torch_voxelmorph.network(SHAPE)
    with torch.inference_mode():
        expected = model.pairwise(*map(torch.from_numpy, padded))[:, :, :17, :20, :40]
        np.testing.assert_array_equal(model(moving, fixed), expected)


def test_displacements_mean_to_the_package_what_they_mean_here(torch, voxelmorph, torch_f3rnet):
    torch.manual_seed(0)
    moving, displacement = torch.rand(1, 1, 9, 10, 11), torch.rand(1, 3, 9, 10, 11)
    theirs = voxelmorph.nn.modules.SpatialTransformer()(moving, displacement)
    ours = torch_f3rnet.warp(moving, displacement)
    inside = np.s_[..., :-1, :-1, :-1]  # beyond the last voxel, zero lies there and the edge value here
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=1e-5)


def test_training_lowers_the_loss(torch, torch_voxelmorph, torch_f3rnet):
    torch.manual_seed(0)
    fixed = torch.nn.functional.avg_pool3d(torch.rand(1, 1, 20, 20, 20), 5, stride=1)
    step = torch_f3rnet.train_step(torch_voxelmorph.network(fixed.shape[2:]), lam=0.01, learning_rate=2e-3)
    values = [float(step(fixed.roll(1, 2), fixed)) for _ in range(10)]
    assert values[-1] < 0.8 * values[0]
