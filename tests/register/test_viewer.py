"""The viewer: what the page embeds is what was registered, it loads nothing, and the library is the published one."""

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser

import nibabel
import numpy as np
import pytest

from f3r_jax.data import nifti, nifti_images
from f3r_jax.data.phantom import generate
from f3r_jax.evaluate.grey_scale import GreyScale, grey_scale
from f3r_jax.register import page, viewer
from viewer_pages import BLOB, ORGANS, SHAPE, SPACING, grid_of, html_of, shown_of, summary_of

NIIVUE = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"  # dist/niivue.umd.js of 0.69.0
QUICK = ("--spacing=8", "--iterations=20", "--mind=mind_ssc_near", "--affine=none", "--checkpoint=none")


class Tags(HTMLParser):
    """The tags of a page with their attributes, and the content of its scripts by id."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self._open = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open = dict(attrs).get("id", f"script {len(self.scripts)}") if tag == "script" else self._open

    def handle_endtag(self, tag):
        self._open = None if tag == "script" else self._open

    def handle_data(self, data):
        if self._open:
            self.scripts[self._open] = self.scripts.get(self._open, "") + data


def volumes_in(html):
    """The settings, and the embedded volumes as images of nibabel."""
    scripts = Tags(html).scripts
    settings = json.loads(scripts["viewer-settings"])
    names = [volume["name"] for volume in settings["volumes"]]
    raw = {name: gzip.decompress(base64.b64decode(scripts[f"viewer-data-{name}"].strip())) for name in names}
    return settings, {name: nibabel.Nifti1Image.from_bytes(data) for name, data in raw.items()}


@pytest.fixture(scope="module")
def embedded():
    shown = shown_of(spread=True)
    return shown, *volumes_in(html_of(shown))


def test_the_scans_are_on_the_working_grid_in_their_grey_scales(embedded):
    shown, _, images = embedded
    scales = {"fixed": grey_scale(shown.fixed)} | dict.fromkeys(("warped", "moving"), grey_scale(shown.moving))
    for name, scale in scales.items():
        assert images[name].shape == SHAPE and images[name].get_data_dtype() == np.uint8
        np.testing.assert_allclose(images[name].affine, shown.grid.affine, atol=1e-4)
        levels = np.asarray(images[name].dataobj) / 255
        np.testing.assert_allclose(levels, scale.levels(getattr(shown, name)), atol=0.5 / 255 + 1e-6)
    assert np.asarray(images["fixed"].dataobj)[BLOB].min() > 200 > 50 > np.asarray(images["fixed"].dataobj)[0, 0, 0]


def test_the_maps_are_in_mm_and_fractions(embedded):
    shown, settings, images = embedded
    values = {name: images[name].get_fdata() for name in ("displacement", "uncertainty", "jacobian")}
    assert np.median(values["displacement"]) == pytest.approx(2 * SPACING[0], abs=0.05)
    assert values["displacement"][20, 16, 12] == pytest.approx(4 * SPACING[0], abs=0.05)
    np.testing.assert_allclose(values["uncertainty"], shown.spread, atol=0.003)
    assert values["jacobian"][5, 5, 5] == pytest.approx(1)
    assert values["jacobian"][19, 16, 12] == 0  # 1 - 3: folded
    assert values["jacobian"][21, 16, 12] == pytest.approx(2)  # 1 + 3, above the range
    units = {volume["name"]: volume["unit"] for volume in settings["volumes"]}
    assert (units["displacement"], units["uncertainty"], units["jacobian"]) == ("mm", "mm", "")


def test_labels_are_numbers_of_organs(embedded):
    shown, settings, images = embedded
    for side, labels in shown.labels.items():
        numbers = np.asarray(images[f"{side}_labels"].dataobj)
        np.testing.assert_array_equal(numbers, np.select([labels == 7, labels == 300], [1, 2]))
    assert [organ["name"] for organ in settings["organs"]] == [
        name.replace("_", " ").replace("/", " ") for name in ORGANS
    ]
    x, y, z = settings["start"]
    assert shown.labels["fixed"][x, y, z] == 7


def test_without_labels_and_uncertainty_there_are_none():
    settings, images = volumes_in(html_of(shown_of(labels=False)))
    assert list(images) == ["fixed", "warped", "moving", "displacement", "jacobian"]
    assert settings["organs"] == [] and settings["start"] == [size // 2 for size in SHAPE]


def test_a_fine_grid_becomes_coarser_over_the_same_place(monkeypatch):
    shown = shown_of()
    monkeypatch.setattr(viewer, "MOST_VOXELS", 6000)
    made = viewer.make_viewer(shown)
    _, images = volumes_in(page.page(summary_of(), [], made))
    assert "coarser than the working grid" in made.about and "5.65 x 5.65 x 5.65 mm" in made.about
    image = images["fixed"]
    assert 4000 < np.prod(image.shape) <= 6000 and {each.shape for each in images.values()} == {image.shape}
    bright = np.argwhere(np.asarray(image.dataobj) > 180)
    blob = np.argwhere(np.asarray(images["fixed_labels"].dataobj) == 1)
    middle = grid_of().affine @ [*((part.start + part.stop - 1) / 2 for part in BLOB), 1]
    for found in (bright, blob):
        np.testing.assert_allclose(image.affine @ [*found.mean(axis=0), 1], middle, atol=1.5)


def test_equal_results_are_equal_pages():
    assert html_of(shown_of()) == html_of(shown_of())


def test_the_page_loads_nothing_and_forbids_it():
    html = html_of(shown_of())
    parsed = Tags(html)
    policy = next(tag["content"] for name, tag in parsed.tags if tag.get("http-equiv"))
    assert policy.startswith("default-src 'none';") and "http" not in policy and "connect-src" not in policy
    assert not [tag for name, tag in parsed.tags if name in ("link", "iframe", "object", "embed", "base")]
    loads = [tag[key] for _, tag in parsed.tags for key in ("src", "href", "data", "action") if key in tag]
    assert all(value.startswith("data:") for value in loads)
    assert not re.findall(r"(?:https?|wss?):|//[a-z]+\.|\bfetch\(|XMLHttpRequest|\bimport\(", html)


@pytest.mark.parametrize("name", ["</script><script>boom()</script>.nii.gz", "a'\"b&c<!--.nii.gz", "{{ 7 * 7 }}.nii"])
def test_odd_names_are_text(name):
    html = html_of(shown_of(), name)
    plain = Tags(html_of(shown_of()))
    odd = Tags(html)
    assert [tag for tag, _ in odd.tags] == [tag for tag, _ in plain.tags]
    assert odd.scripts.keys() == plain.scripts.keys() and "boom()</script>" not in html
    assert json.loads(odd.scripts["viewer-settings"])["organs"][0]["name"] == "left kidney< script>"


def test_without_the_viewer_the_page_has_no_script():
    html = page.page(summary_of(), [])
    assert "<script" not in html and "<canvas" not in html and len(html) < 20_000


def test_the_library_is_the_published_file_and_its_licence_is_on_the_page():
    script = gzip.decompress(viewer.packaged_file(viewer.LIBRARY))
    assert hashlib.sha256(script).hexdigest() == NIIVUE
    readme = viewer.packaged_file("README.md").decode()
    assert NIIVUE in readme and f"version {viewer.VERSION}" in readme
    html = html_of(shown_of())
    assert base64.b64encode(viewer.packaged_file(viewer.LIBRARY)).decode() in html
    assert "Copyright (c) 2021, Niivue" in html and "Redistributions in binary form" in html


def test_dark_organs_are_brightened_and_the_window_ignores_air_and_outliers():
    rng = np.random.default_rng(1)
    volume = np.zeros((40, 40, 20), np.float32)  # air is three quarters
    volume[10:30, 10:30] = 0.15 + 0.01 * rng.random((20, 20, 20), np.float32)
    volume[10:30, 10:15] = 0.9  # fat
    volume[10, 10, :4] = 30.0  # hot voxels
    scale = grey_scale(volume)
    assert scale.high == pytest.approx(0.9) and 0 <= scale.low < 0.2 and scale.power == 0.5
    linear = GreyScale(scale.low, scale.high).levels(volume)
    organ = (slice(16, 30), slice(16, 30))
    assert np.median(scale.levels(volume)[organ]) > 2 * np.median(linear[organ])
    flat = grey_scale(np.zeros((8, 8, 8), np.float32))
    assert flat.levels(np.zeros((8, 8, 8), np.float32)).max() == 0


def test_compressed_volumes_are_equal_bytes_and_readable(tmp_path):
    data = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    written = nifti_images.compressed(data, grid_of().affine, slope=0.5)
    assert written == nifti_images.compressed(data, grid_of().affine, slope=0.5)
    (tmp_path / "volume.nii.gz").write_bytes(written)
    np.testing.assert_allclose(nifti.read(tmp_path / "volume.nii.gz").data, data / 2)


@pytest.fixture(scope="module")
def result(commands, tmp_path_factory):
    """The folder of a registration by the command, and a folder of the same pair without the viewer."""
    made = tmp_path_factory.mktemp("pair")
    case = generate.make_case(3, 3, shape=(40, 32, 32), spacing=(8.0,) * 3)
    for name, data in (("mr", case.mr), ("ct", case.ct), ("mr_labels", case.mr_labels), ("ct_labels", case.ct_labels)):
        nifti.write(made / f"{name}.nii.gz", data, np.diag([8.0, 8.0, 8.0, 1.0]))
    sides = [
        f"--{side}{end}={made / name}{end}.nii.gz"
        for side, name in (("fixed", "mr"), ("moving", "ct"))
        for end in ("", "_labels")
    ]
    for folder, more in (("with", ()), ("without", ("--noviewer",))):
        done = commands.run("register", *sides, f"--output={made / folder}", *QUICK, *more)
        assert done.status == 0 and done.err == "", done
    return made


def test_the_command_embeds_its_result(result):
    settings, images = volumes_in((result / "with" / "report.html").read_text())
    assert [organ["name"] for organ in settings["organs"]] == ["liver", "spleen", "right kidney", "left kidney"]
    warped, labels = nifti.read(result / "with" / "warped.nii.gz"), nifti.read_labels(result / "mr_labels.nii.gz")
    moving = nifti.read(result / "ct.nii.gz")
    origin = np.rint(np.linalg.inv(warped.affine) @ images["warped"].affine)[:3, 3].astype(int)
    inside = tuple(slice(max(-low, 0), max(-low, 0) + size) for low, size in zip(origin, warped.shape, strict=True))
    window = {name: np.clip(volume.data, -160, 240) for name, volume in (("warped", warped), ("moving", moving))}
    shown = {name: np.asarray(images[name].dataobj)[inside].astype(float) for name in window}
    for name, other in (("warped", "moving"), ("moving", "warped")):  # without an affine step moving is as in the file
        right, wrong = (np.corrcoef(shown[name].ravel(), window[each].ravel())[0, 1] for each in (name, other))
        assert right > 0.95 and right > wrong + 0.01
    np.testing.assert_array_equal(
        np.asarray(images["fixed_labels"].dataobj)[inside], np.where(labels.data <= 4, labels.data, 0)
    )


def test_the_viewer_can_be_left_out(result):
    page_with, page_without = ((result / name / "report.html").read_text() for name in ("with", "without"))
    assert "<script" not in page_without and len(page_with) > len(page_without) + 1_000_000
    assert json.loads((result / "without" / "summary.json").read_text())["settings"]["viewer"] is False
    assert "viewer" not in json.loads((result / "with" / "summary.json").read_text())["settings"]
    for figure in ("overlay", "checkerboard", "deformation"):
        assert f'<img alt="{figure}"' in page_with and f'<img alt="{figure}"' in page_without
