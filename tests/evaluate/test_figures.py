"""Pictures: drawn for every kind of case, the right way round, to scale, and written whole or not at all."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from f3r_jax.evaluate import curves, drawing, figures

SHAPE, SPACING = (32, 28, 20), (3.0, 3.0, 5.0)
ORGANS = {"spleen": (2,), "liver": (1,), "kidneys": (3, 4)}


def blocks(shift=0):
    labels = np.zeros(SHAPE, np.uint8)
    labels[16 + shift : 28 + shift, 8:20, 6:16] = 1
    labels[4 + shift : 9 + shift, 6:12, 8:14] = 2
    return labels


def case(**changes):
    images = {name: (labels > 0).astype(np.float32) for name, labels in (("fixed", blocks()), ("moving", blocks(3)))}
    arguments = {
        **images,
        "warped": images["fixed"],
        "fixed_labels": blocks(),
        "moving_labels": blocks(3),
        "warped_labels": blocks(1),
        "spacing": SPACING,
        "title": "case",
        "organs": ORGANS,
    }
    return {**arguments, **changes}


def images_of(arguments):
    return {name: arguments[name] for name in ("fixed", "moving", "warped", "spacing", "title")}


def wavy_field(amplitude):
    x = np.arange(SHAPE[0], dtype=np.float32)[:, None, None]
    field = np.zeros((*SHAPE, 3), np.float32)
    field[..., 0] = amplitude * np.sin(x)
    return field


def mirrored_field():
    return np.stack(np.broadcast_arrays(-2.0 * np.arange(SHAPE[0])[:, None, None], *np.zeros((2, *SHAPE))), axis=-1)


def drawn(path):
    """The picture as (height, width) grey values in [0, 1]; checks that it is the only file there."""
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    picture = imread(path)
    assert picture.shape[1] == 1400
    return picture[..., :3].mean(axis=-1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fixed_labels": None, "moving_labels": None, "warped_labels": None},
        {"moving_labels": None, "warped_labels": None},
        {"fixed_labels": None},
        {"fixed_labels": np.zeros(SHAPE, np.uint8)},
        {"moving": np.zeros(SHAPE, np.float32)},
        {"organs": {"tumour": (9,)}},
    ],
    ids=["whole", "no labels", "fixed labels", "no fixed labels", "no organs", "flat image", "absent organ"],
)
def test_overlay_is_drawn_with_or_without_labels(tmp_path, changes):
    path = tmp_path / "overlay.png"
    figures.overlay(path, **case(**changes))
    assert drawn(path).std() > 0.05


def test_overlay_shows_outlines_in_colour(tmp_path):
    path = tmp_path / "overlay.png"
    figures.overlay(path, **case())
    colours = imread(path)[..., :3]
    liver = np.array([0x56, 0xB4, 0xE9]) / 255  # the second organ of the mapping has the second colour
    assert np.sum(np.abs(colours - liver).max(axis=-1) < 0.05) > 300


def test_checkerboard_is_drawn(tmp_path):
    path = tmp_path / "checkerboard.png"
    figures.checkerboard(path, **images_of(case(spacing=np.array([1.0, 1.0, 1.0]))))
    assert drawn(path).std() > 0.05


@pytest.mark.parametrize(
    "field",
    [wavy_field(0.0), wavy_field(0.3), wavy_field(2.0), mirrored_field()],
    ids=["still", "smooth", "folds", "folds everywhere"],
)
def test_deformation_is_drawn(tmp_path, field):
    path = tmp_path / "deformation.png"
    figures.deformation(path, fixed=case()["fixed"], displacement=field, spacing=SPACING, title="case")
    assert drawn(path).std() > 0.05


@pytest.mark.parametrize(
    ("block", "row"),
    [((slice(24, 30), slice(20, 26), slice(8, 12)), 0), ((slice(24, 30), slice(13, 15), slice(14, 18)), 1)],
    ids=["axial", "coronal"],
)
def test_right_is_on_the_left_and_front_or_head_is_up(tmp_path, block, row):
    """A block at high x (patient's right) and high y or z changes only the upper left quarter of its slice."""
    # In the axial case the block misses the coronal slice y = 14, in the coronal case the axial slice z = 10.
    dark = np.zeros(SHAPE, np.float32)
    bright = dark.copy()
    bright[block] = 1.0
    pages = []
    for moving in (dark, bright):
        path = tmp_path / "overlay.png"
        nothing = {"fixed_labels": None, "moving_labels": None, "warped_labels": None}
        figures.overlay(path, **case(fixed=dark, moving=moving, warped=moving, **nothing))
        pages.append(drawn(path))
    panel = black_panels(pages[0])[row][0]
    rows, columns = np.nonzero(np.abs(pages[0] - pages[1])[:, : panel[1].stop] > 0.1)
    middle = ((panel[0].start + panel[0].stop) / 2, (panel[1].start + panel[1].stop) / 2)
    assert rows.size > 100
    assert panel[0].start <= rows.min()
    assert rows.max() < middle[0]
    assert panel[1].start <= columns.min()
    assert columns.max() < middle[1]


def black_panels(page):
    """The panels of a page of black slices as rows of (vertical, horizontal) slices."""

    def runs(dark):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], dark.astype(int), [0]])))
        return [slice(int(low), int(high)) for low, high in edges.reshape(-1, 2) if high - low > 20]

    dark = page < 0.5
    return [[(down, across) for across in runs(dark.mean(axis=0) > 0.5)] for down in runs(dark.mean(axis=1) > 0.5)]


def test_slices_are_to_scale(tmp_path):
    """Panels are as high by width as the volume in mm: 28 x 3 (axial) and 20 x 5 (coronal) by 32 x 3."""
    dark = np.zeros(SHAPE, np.float32)
    path = tmp_path / "checkerboard.png"
    figures.checkerboard(path, **images_of(case(fixed=dark, moving=dark, warped=dark)))
    axial, coronal = black_panels(drawn(path))
    for panels, height in ((axial, 84), (coronal, 100)):
        for down, across in panels:
            assert (down.stop - down.start) / (across.stop - across.start) == pytest.approx(height / 96, rel=0.01)


def test_the_same_case_gives_the_same_bytes(tmp_path):
    written = []
    for name in ("a.png", "b.png"):
        figures.overlay(tmp_path / name, **case())
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]


def test_a_killed_write_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    curves.training_curves(path, [], [])
    old = path.read_bytes()

    def half_written(figure, target, **options):
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", half_written)
    with pytest.raises(KeyboardInterrupt):
        curves.training_curves(path, [], [])
    assert path.read_bytes() == old


TRAIN = [{"step": step, "loss": 1 / step, "mind": np.float32(0.5 / step), "seconds": 2.0} for step in range(1, 61)]
VALIDATION = [{"step": step, "dice": 70.0 + step / 10, "dice_liver": 80.0, "folding_percent": 0.0} for step in (20, 40)]


@pytest.mark.parametrize(
    ("train_rows", "validation_rows"),
    [
        (TRAIN, VALIDATION),
        (TRAIN[:1], VALIDATION[:1]),
        ([], VALIDATION),
        ([], []),
        ([*TRAIN, {"step": 61, "loss": float("nan")}, {"step": 62, "case": "a"}], [{"step": 1, "dice": float("nan")}]),
        (TRAIN, [row | {"dice_gain": 1.0, "dice_mean_field": 79.0, "correlation": 0.2} for row in VALIDATION]),
        ([{"step": 1, **{f"term_{number}": 1.0 for number in range(6)}}], VALIDATION),
    ],
    ids=["whole", "one row", "no training", "nothing", "gaps", "controls", "many terms"],
)
def test_training_curves_are_drawn_from_any_rows(tmp_path, train_rows, validation_rows):
    path = tmp_path / "curves.png"
    curves.training_curves(path, train_rows, validation_rows)
    assert drawn(path).std() > 0.01


def test_curves_leave_out_what_is_no_finite_number():
    rows = [{"step": 1, "loss": 2.0, "case": "a"}, {"step": 2, "loss": float("inf")}, {"step": 3, "loss": 4}]
    found = curves._curves(rows)
    assert list(found) == ["loss"]
    np.testing.assert_array_equal(found["loss"], [[1, 3], [2, 4]])


def test_names_are_drawn_as_text(tmp_path, recwarn):
    """Two $ are no mathematics, and names may be in any script or in none."""
    names = {"a$\\bad{$": (1,), "\u6f22": (2,), "b\udce9": (3,)}
    figures.overlay(tmp_path / "overlay.png", **case(title="m$x$_{.nii on \u6f22\udce9", organs=names))
    assert (tmp_path / "overlay.png").exists()
    assert not list(recwarn)


@pytest.mark.parametrize("organs", [{f"organ_{n}" for n in range(60)}, {"x" * 300}, {"\u0643\u0628\u062f", "\u05db"}])
def test_training_curves_leave_room_for_the_panels(tmp_path, recwarn, organs):
    rows = [{"step": step, "dice": 70.0 + step} | {f"dice_{organ}": 50.0 for organ in organs} for step in (0, 5)]
    curves.training_curves(tmp_path / "curves.png", [{"step": step, "loss": 1.0} for step in range(3)], rows)
    assert not list(recwarn)
    page = imread(tmp_path / "curves.png")
    assert page.shape[1] == 1400


def test_long_names_are_cut_in_the_middle():
    assert drawing.shortened("liver", 10) == "liver"
    short = drawing.shortened("a" * 50 + "b" * 50, 10)
    assert short == "aaaaaa\N{HORIZONTAL ELLIPSIS}bbb" and len(short) == 10
