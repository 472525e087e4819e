"""The networks' structure, counted without computing, and what F3RNet does with an image."""

from functools import cache, partial

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from f3r_jax.common.errors import UserError
from f3r_jax.models import build, check_shape, count_parameters, initialise, label
from f3r_jax.models.f3rnet import VARIANTS, F3RNet
from parameter_counts import COUNTS

PAPER = {
    "wo_f3d": 0.746,
    "w_f3d": 0.236,
    "enc": 0.488,
    "dec": 0.544,
    "fr": 0.697,
    "ms": 0.286,
    "mrb": 0.296,
}  # millions, Table 2
EXTRA = ("extra_0", "extra_1")
CHAIN = ("encoder_1", "encoder_2", "encoder_3", "encoder_4", "decoder_3", "decoder_2", "decoder_1")
CHAIN_OF_MRB = (*CHAIN[:4], *EXTRA, *CHAIN[4:])
SCALES = (1, 2, 3, 4, 4, 4, 3, 2, 1)

SHAPE = (17, 14, 9)
PADDED = (32, 16, 16)
QUICKLY_COMPILED = {"xla_backend_optimization_level": 0}
MRB = F3RNet(VARIANTS["mrb"])


def config(name="f3rnet", variant="mrb"):
    return ConfigDict({"name": name, "variant": variant, "flow_init": 1e-5, "diffeomorphic": False, "remat": False})


@cache
def shapes_of(variant):
    return jax.eval_shape(partial(initialise, build(config(variant=variant))), jax.random.key(0))


def random_parameters(scale_of_flow=1.0):
    """Far from the start, biases and the last layer too."""
    generator = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: generator.normal(scale=np.sqrt(leaf.shape[-1] / leaf.size), size=leaf.shape).astype(np.float32),
        shapes_of("mrb"),
    )
    params["flow"] = jax.tree.map(lambda leaf: scale_of_flow * leaf, params["flow"])
    return params


def images(shape=SHAPE):
    """Moving and fixed, a batch of two."""
    return np.random.default_rng(0).random((2, 2, *shape, 1), dtype=np.float32)


@partial(jax.jit, compiler_options=QUICKLY_COMPILED)
def with_features(params, moving, fixed):
    displacement, state = MRB.apply({"params": params}, moving, fixed, mutable=["features"])
    return displacement, state["features"]


@cache
def result():
    """The field of the random network for the random images, and the features."""
    return with_features(random_parameters(), *images())


@partial(jax.jit, compiler_options=QUICKLY_COMPILED)
def fresh(seed):
    return initialise(MRB, jax.random.key(seed))


# ---------------------------------------------------------------------------------------------------------------------
# Structure


@pytest.mark.parametrize("variant", COUNTS)
def test_parameter_counts_are_those_of_the_paper(variant):
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes_of(variant))) == COUNTS[variant]
    assert COUNTS[variant] / 1e6 == pytest.approx(PAPER[variant], rel=0.008)


def test_parameters_are_counted_for_the_user():
    assert count_parameters(build(config(variant="ms"))) == COUNTS["ms"]


def test_there_are_the_seven_variants_of_the_paper():
    assert set(VARIANTS) == set(COUNTS)
    assert label(config()) == "F3RNet-MRB"
    assert len({label(config(variant=variant)) for variant in VARIANTS}) == 7


@pytest.mark.parametrize("variant", COUNTS)
def test_final_convolution_is_never_factorised(variant):
    flow = shapes_of(variant)["flow"]
    assert {name: leaf.shape for name, leaf in flow.items()} == {"kernel": (3, 3, 3, 16, 3), "bias": (3,)}


@pytest.mark.parametrize("variant", COUNTS)
def test_channels_of_the_two_streams(variant):
    shapes = shapes_of(variant)
    chain = CHAIN_OF_MRB if variant == "mrb" else CHAIN
    full = {"stem", *(f"{part}_{n}" for part in ("early", "late") for n in range(3)), "reduce"}
    assert set(shapes) == {*full, *chain, "flow"}
    assert {leaf.shape[-1] for name in full - {"stem"} for leaf in jax.tree.leaves(shapes[name])} == {16}
    for name in chain:
        block = shapes[name]
        assert {leaf.shape[-1] for leaf in jax.tree.leaves(block["block"])} == {32}
        assert block["bottleneck"]["kernel"].shape == (1, 1, 1, 32, 16)
        joined = 16 if name == "encoder_1" else 48
        conv = block["conv"]
        kernel = conv["plane"]["kernel"] if "plane" in conv else conv["kernel"]
        assert kernel.shape[3] == joined


@pytest.mark.parametrize("variant", COUNTS)
def test_factorised_parts_are_those_of_table_1(variant):
    shapes, row = shapes_of(variant), VARIANTS[variant]
    for part, factorised in (("early_0", row.full), ("encoder_2", row.encoder), ("decoder_2", row.decoder)):
        sizes = {leaf.shape[:3] for leaf in jax.tree.leaves(shapes[part]) if leaf.ndim == 5} - {(1, 1, 1)}
        assert sizes == ({(3, 3, 1), (1, 1, 3)} if factorised else {(3, 3, 3)})


# ---------------------------------------------------------------------------------------------------------------------
# Behaviour


def test_odd_size_is_padded_with_its_edge_and_cropped_back():
    extra = [(0, 0), *((0, p - n) for n, p in zip(SHAPE, PADDED, strict=True)), (0, 0)]
    padded = [np.pad(image, extra, mode="edge") for image in images()]
    # This program asks for no features: the same field shows that they are only looked at.
    plain = jax.jit(MRB.apply, compiler_options=QUICKLY_COMPILED)
    whole = plain({"params": random_parameters()}, *padded)
    assert whole.shape == (2, *PADDED, 3)
    field = np.asarray(result()[0])
    assert np.abs(field).max() > 0.1
    np.testing.assert_allclose(field, whole[:, :17, :14, :9], atol=1e-5 * np.abs(field).max())


def test_features_are_those_after_each_block_of_the_chain():
    features = result()[1]
    assert "features" not in shapes_of("mrb")
    assert set(features) == {f"{letter}_{name}" for letter in "lh" for name in CHAIN_OF_MRB}
    for name, scale in zip(CHAIN_OF_MRB, SCALES, strict=True):
        coarse = tuple(n // 2**scale for n in PADDED)
        assert [x.shape for x in features[f"l_{name}"]] == [(2, *PADDED, 16)]
        assert [x.shape for x in features[f"h_{name}"]] == [(2, *coarse, 32)]


def test_blocks_add_their_residual_to_the_full_resolution_stream():
    params = random_parameters()
    params["encoder_2"]["bottleneck"] = {
        "kernel": np.zeros((1, 1, 1, 32, 16), "float32"),
        "bias": np.full(16, 0.5, "float32"),
    }
    for name in CHAIN_OF_MRB[2:]:
        params[name]["bottleneck"] = jax.tree.map(np.zeros_like, params[name]["bottleneck"])
    features = with_features(params, *images())[1]
    first, second = (np.asarray(features[f"l_{name}"][0]) for name in CHAIN_OF_MRB[:2])
    np.testing.assert_allclose(second, first + 0.5, rtol=1e-5, atol=1e-5)
    for name in CHAIN_OF_MRB[2:]:
        np.testing.assert_array_equal(features[f"l_{name}"][0], second)


def test_cases_of_a_batch_do_not_touch_each_other():
    moving, fixed = images()
    moving[1], fixed[1] = 0.5, 0.25
    field, expected = np.asarray(with_features(random_parameters(), moving, fixed)[0]), np.asarray(result()[0])
    np.testing.assert_allclose(field[0], expected[0], atol=1e-5 * np.abs(expected).max())
    assert np.abs(field[1] - expected[1]).max() > 1e-2


@pytest.mark.parametrize("which", [0, 1])
def test_every_voxel_sees_the_opposite_corner_of_both_images(which):
    pair = images()
    pair[which, :, 0, 0, 0] += 1
    field = with_features(random_parameters(), *pair)[0]
    assert np.abs(np.asarray(field - result()[0])[:, -1, -1, -1]).min() > 0


def test_moving_and_fixed_are_told_apart():
    swapped = with_features(random_parameters(), *images()[::-1])[0]
    assert np.abs(np.asarray(swapped - result()[0])).max() > 1e-2


def test_fresh_network_is_almost_the_identity_and_not_dead():
    field = np.asarray(with_features(fresh(0), *images())[0])
    assert 0 < np.abs(field).max() < 0.01


def test_field_is_linear_in_the_last_layer():
    doubled = with_features(random_parameters(2.0), *images())[0]
    np.testing.assert_allclose(doubled, 2 * result()[0], rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Initialisation and mistakes


def test_initialisation_hangs_on_the_key_alone():
    leaves, again, other = (jax.tree.leaves(fresh(seed)) for seed in (0, 0, 1))
    for leaf, same, different in zip(leaves, again, other, strict=True):
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, same)
        assert leaf.ndim == 1 or not np.array_equal(leaf, different)


def test_initial_biases_are_zero_and_kernels_are_of_their_own():
    params = fresh(0)
    assert all(not leaf.any() for leaf in jax.tree.leaves(params) if leaf.ndim == 1)
    kernels = [np.asarray(leaf) for leaf in jax.tree.leaves(params) if leaf.ndim == 5]
    assert len({kernel.ravel()[:4].tobytes() for kernel in kernels}) == len(kernels)


def test_spread_of_the_last_kernel_is_the_given_one():
    kernel = np.asarray(fresh(0)["flow"]["kernel"])
    assert kernel.std() == pytest.approx(MRB.flow_init, rel=0.05)


@pytest.mark.parametrize(
    ("model", "found", "expected"),
    [
        (config(name="unet"), "model.name is 'unet'", "f3rnet"),
        (config(variant="xl"), "model.variant is 'xl'", "wo_f3d, w_f3d, enc, dec, fr, ms, mrb"),
    ],
)
def test_unknown_name_is_a_mistake_of_the_user(model, found, expected):
    with pytest.raises(UserError) as error:
        build(model)
    assert found in str(error.value) and expected in str(error.value) and "\n" not in str(error.value)


def test_volume_that_is_too_small_is_a_mistake_of_the_user():
    check_shape((16, 17, 300), "data.shape")
    with pytest.raises(UserError) as error:
        check_shape((64, 15, 64), "data.shape")
    assert str(error.value).startswith("data.shape: 64 x 15 x 64 voxels") and "\n" not in str(error.value)
