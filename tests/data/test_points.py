"""Points in CSV, TSV and 3D Slicer's files."""

import json

import numpy as np
import pytest

from f3r_jax.common.errors import UserError
from f3r_jax.data.points import read_points, write_points

POINTS = np.array([[1.5, -2.25, 3.0], [-40.0, 50.5, 60.125]])


def message(path):
    with pytest.raises(UserError) as caught:
        read_points(path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "x,y,z\n1.5,-2.25,3\n-40,50.5,60.125\n",
        "name;x;y;z\na;1,5;-2,25;3\nb;-40;50,5;60,125\n",
        "\ufeffz\ty\tx\tnote\n3\t-2.25\t1.5\tone, two\n60.125\t50.5\t-40\t\n",
    ],
)
def test_tables_with_commas_semicolons_and_tabs(tmp_path, text):
    (tmp_path / "p.csv").write_text(text, encoding="utf-8")
    np.testing.assert_array_equal(read_points(tmp_path / "p.csv").points, POINTS)


@pytest.mark.parametrize(("name", "delimiter"), [("q.csv", ","), ("q.tsv", "\t")])
def test_the_other_columns_are_kept(tmp_path, name, delimiter):
    (tmp_path / "p.csv").write_text("id;x;y;z;note\n7;1;2;3;liver, dome\n8;4;5;6;\n")
    read = read_points(tmp_path / "p.csv")
    write_points(tmp_path / name, POINTS, like=read)
    lines = (tmp_path / name).read_text().splitlines()
    assert lines[0].split(delimiter) == ["id", "x", "y", "z", "note"]
    again = read_points(tmp_path / name)
    np.testing.assert_array_equal(again.points, POINTS)
    assert [(row["id"], row["note"]) for row in again.rows] == [("7", "liver, dome"), ("8", "")]


@pytest.mark.parametrize("name", ["p.csv", "p.tsv", "p.fcsv", "p.mrk.json"])
def test_points_come_back_from_every_format_with_their_names(tmp_path, name):
    (tmp_path / "in.csv").write_text('label,x,y,z\n"dome, left",1,2,3\ntip,4,5,6\n')
    write_points(tmp_path / name, POINTS, like=read_points(tmp_path / "in.csv"))
    again = read_points(tmp_path / name)
    np.testing.assert_allclose(again.points, POINTS, atol=1e-4)
    assert again.labels() == ["dome, left", "tip"]
    write_points(tmp_path / name, POINTS)
    np.testing.assert_allclose(read_points(tmp_path / name).points, POINTS, atol=1e-4)


@pytest.mark.parametrize(("frame", "sign"), [("LPS", -1), ("RAS", 1), ("0", 1), ("1", -1)])
def test_fiducials_of_3d_slicer_name_their_frame(tmp_path, frame, sign):
    (tmp_path / "p.fcsv").write_text(
        f"# Markups fiducial file version = 4.11\n# CoordinateSystem = {frame}\n"
        "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
        "vtkMRML_0,1.5,-2.25,3,0,0,0,1,1,1,0,F-1,,vtkMRML1\nvtkMRML_1,-40,50.5,60.125,0,0,0,1,1,1,0,F-2,,vtkMRML1\n"
    )
    read = read_points(tmp_path / "p.fcsv")
    np.testing.assert_array_equal(read.points, POINTS * (sign, sign, 1))
    assert read.labels() == ["F-1", "F-2"]


def markups(**changes):
    point = {"label": "F-1", "position": [1.5, -2.25, 3.0], "positionStatus": "defined"}
    markup = {"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": [point | changes.pop("point", {})]}
    return json.dumps({"markups": [markup | changes]})


def test_markups_of_3d_slicer(tmp_path):
    path = tmp_path / "p.mrk.json"
    path.write_text(markups())
    np.testing.assert_array_equal(read_points(path).points, [[-1.5, 2.25, 3.0]])
    path.write_text(markups(coordinateSystem="RAS"))
    np.testing.assert_array_equal(read_points(path).points, [[1.5, -2.25, 3.0]])
    for text, words in (
        (markups(coordinateSystem="IJK"), "coordinate system IJK"),
        (markups(point={"positionStatus": "undefined"}), "point 1 is not placed"),
        (markups(point={"position": [1, 2]}), "not one list of points"),
        (markups(controlPoints=[]), "holds no points"),
        (json.dumps({"markups": []}), "not one list of points"),
        ("{", "not one list of points"),
    ):
        path.write_text(text)
        assert words in message(path)


def test_files_that_are_no_points(tmp_path):
    for name, text, words in (
        ("a.csv", "x,y\n1,2\n", "no column z"),
        ("b.csv", "x;y;z\n1;2;far\n", "could not convert"),
        ("c.csv", "x,y,z\n1,2,nan\n", "NaN"),
        ("d.fcsv", "# columns = id,x,y,z\n", "no points"),
        ("e.fcsv", "# CoordinateSystem = IJK\n1,2,3,4\n", "coordinate system IJK"),
        ("f.fcsv", "# nothing\n1,2\n", "no points"),
    ):
        (tmp_path / name).write_text(text)
        assert words in message(tmp_path / name)
    assert "no such file" in message(tmp_path / "none.fcsv")
    with pytest.raises(UserError, match="expected a name ending in"):
        write_points(tmp_path / "p.vtk", POINTS)
