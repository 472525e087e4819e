"""The viewer in headless Chromium, from `file://`; a script that is added to the page uses its controls."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time

import pytest

from viewer_pages import BLOB, html_of, shown_of

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SECONDS = 240  # Chromium takes 10 on a busy core
# Without WebGL's software renderer a machine without a graphics card draws nothing.
SOFTWARE = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")
SCRIPT = """
const root = document.getElementById("viewer"), part = (name) => document.getElementById(`viewer-${name}`);
const found = { errors: [] };
window.addEventListener("error", (event) => found.errors.push(event.message));
window.addEventListener("securitypolicyviolation", (event) => found.errors.push(event.blockedURI));
function set(name, value) {
  const node = part(name);
  if (node.type === "checkbox") node.checked = value; else node.value = value;
  node.dispatchEvent(new Event("input"));
}
function box(pixels, width, height, wanted) {
  const box = { left: width, right: -1, top: height, bottom: -1, count: 0, red: 0, blue: 0 };
  for (let i = 0; i < width * height; i++) {
    const [red, green, blue] = pixels.subarray(4 * i, 4 * i + 3);
    box.red += red; box.blue += blue;
    if (!wanted(red, green, blue)) continue;
    const [x, y] = [i % width, Math.floor(i / width)];
    box.left = Math.min(box.left, x); box.right = Math.max(box.right, x);
    box.top = Math.min(box.top, y); box.bottom = Math.max(box.bottom, y);
    box.count++;
  }
  return { ...box, width, height };
}
function scan(name, wanted) {
  const view = root.viewers[name], { gl, canvas } = view, pixels = new Uint8Array(4 * canvas.width * canvas.height);
  view.drawScene();
  gl.readPixels(0, 0, canvas.width, canvas.height, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
  const found = box(pixels, canvas.width, canvas.height, wanted);  // rows from below
  return { ...found, top: canvas.height - 1 - found.bottom, bottom: canvas.height - 1 - found.top };
}
function lines(wanted) {
  const { width, height } = part("lines");
  return box(part("lines").getContext("2d").getImageData(0, 0, width, height).data, width, height, wanted);
}
const drawn = (red, green, blue) => red + green + blue > 30;
const bright = (red, green, blue) => red > 230 && green > 230 && blue > 230;
const orange = (red, green, blue) => red > 200 && green > 130 && green < 190 && blue < 60;
const style = () => part("other").style;
function act() {
  found.canvases = { fixed: scan("fixed", drawn).count, other: scan("other", drawn).count };
  found.swipe = style().getPropertyValue("mask").match(/linear-gradient/g)?.length;
  set("planes", 0); set("crosshair", false); set("outline-other", false); set("way", "blend"); set("amount", 40);
  found.opacity = style().opacity;
  root.viewers.fixed.opts.fontColor = [0, 0, 0, 0];
  found.bright = scan("fixed", bright);
  found.outline = lines(orange);
  set("outline-fixed", false);
  found.without = lines(drawn).count;
  found.readout = part("readout").textContent;
  set("slice-x", 0); set("slice-y", 0); set("slice-z", 0);
  found.corner = part("readout").textContent;
  set("slice-z", 20);
  part("other").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft", bubbles: true }));
  found.slices = ["x", "y", "z"].map((axis) => part(`slice-${axis}`).value).join();
  set("slice-z", 14); set("zoom", 2);
  found.zoomed = ["fixed", "other"].map((name) => root.viewers[name].scene.pan2Dxyzmm[3]).join();
  set("zoom", 1);
  for (const name of ["displacement", "jacobian"]) {
    set("overlay", name);
    const { red, blue } = scan("fixed", drawn);
    found[name] = { red, blue, scale: part("scale").textContent.replace(/\\s+/g, " ").trim() };
  }
  set("overlay", "");
  set("with", "moving");
  found.moving = part("shown").textContent;
  for (const key of ["b", "B"]) {
    document.dispatchEvent(new KeyboardEvent("keydown", { key }));
    found[`blink ${key}`] = [style().opacity, part("shown").textContent].join();
  }
  const loads = performance.getEntriesByType("resource").map(({ name }) => name);
  found.loads = loads.filter((name) => !/^(data|blob):/.test(name));
}
const waiting = setInterval(() => {
  if (!root.dataset.state) return;
  clearInterval(waiting);
  try { if (root.dataset.state === "ready") act(); } catch (error) { found.errors.push(String(error)); }
  found.state = root.dataset.state;
  found.volumes = root.dataset.volumes;
  if (root.dataset.error) found.errors.push(root.dataset.error);
  found.status = part("status").hidden ? "" : part("status").textContent;
  found.fits = document.documentElement.scrollWidth <= window.innerWidth;
  const report = document.createElement("output");
  report.id = "found";
  report.textContent = JSON.stringify(found);
  document.body.append(report);
}, 50);
"""


def dumped(command, path):
    """What Chromium prints. It sometimes does not exit, and its children keep pipes open: so it prints to a file."""
    with open(path, "wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + SECONDS
    try:
        while process.poll() is None and time.monotonic() < deadline:
            if (text := path.read_text(encoding="utf-8", errors="replace")).rstrip().endswith("</html>"):
                return text
            time.sleep(0.3)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def visit(tmp_path_factory):
    """A function that opens a page in Chromium and returns what the script found."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"none of {', '.join(NAMES)} on this machine: the viewer is not opened in a browser")

    def open_page(html, *options):
        folder = tmp_path_factory.mktemp("browser")
        path = folder / "it's a report #1.html"
        path.write_text(html.replace("</body>", f"<script>{SCRIPT}</script></body>"), encoding="utf-8")
        command = [program, "--headless", "--no-sandbox", f"--user-data-dir={folder / 'profile'}", *options]
        command += ["--disable-background-networking", "--virtual-time-budget=60000", "--dump-dom", path.as_uri()]
        (found,) = re.findall(r'<output id="found">(.*?)</output>', dumped(command, folder / "dom.html"))
        return json.loads(found.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))

    return open_page


@pytest.fixture(scope="module")
def found(visit):
    return visit(html_of(shown_of(spread=True)), *SOFTWARE, "--window-size=1000,800")


def test_all_volumes_are_drawn_without_an_error_or_a_request(found):
    assert found["state"] == "ready" and found["status"] == "" and found["errors"] == [] and found["loads"] == []
    assert found["volumes"] == "9"  # three scans, three maps, three label maps
    assert min(found["canvases"].values()) > 20_000  # pixels
    assert found["fits"]


def test_outlines_surround_the_organ_where_it_is_drawn(found):
    bright, outline = found["bright"], found["outline"]
    assert bright["count"] > 1000 and outline["count"] > 50 and found["without"] == 0
    voxel = (bright["right"] - bright["left"]) / (BLOB[0].stop - BLOB[0].start)
    for side in ("left", "right", "top", "bottom"):
        assert abs(bright[side] - outline[side]) < voxel, side
    # The organ is in front and towards the patient's left, which is on the right of the screen.
    assert bright["left"] > bright["width"] / 2 and bright["bottom"] < bright["height"] / 2


def test_the_readout_has_the_values_at_the_crosshair(found):
    assert "displacement 6.0" in found["readout"] and "Jacobian determinant 1.00" in found["readout"]
    assert "fixed labels: left kidney< script>" in found["readout"]
    assert found["corner"].startswith("x -100, y 250, z 900 mm")  # the first voxel, by the affine of the grid
    assert found["slices"] == "1,0,20"  # to the left of the screen, which is the patient's right


def test_swipe_opacity_and_blink(found):
    assert found["swipe"] == 3 and found["opacity"] == "0.4" and found["zoomed"] == "2,2"
    assert "moving scan after the affine step" in found["moving"]
    assert found["blink b"] == "0,Now: fixed scan." and found["blink B"].startswith("1,Now: moving scan")


def test_overlays_are_coloured(found):
    assert found["displacement"]["red"] > 2 * found["displacement"]["blue"]  # 6 mm everywhere: the last colour, yellow
    assert found["displacement"]["scale"].startswith("0") and "mm" in found["displacement"]["scale"]
    assert found["jacobian"]["red"] < 1.1 * found["jacobian"]["blue"] and "folds" in found["jacobian"]["scale"]  # white


def test_it_fits_a_phone(visit):
    found = visit(html_of(shown_of()), *SOFTWARE, "--window-size=500,900")  # Chromium's narrowest
    assert found["state"] == "ready" and found["errors"] == [] and found["fits"]


def test_without_webgl_one_sentence_is_left(visit):
    found = visit(html_of(shown_of()), "--disable-gpu", "--disable-3d-apis")
    assert found["state"] == "failed" and found["errors"] == []
    assert found["status"] == (
        "The viewer needs a current browser with WebGL2, which is missing or switched off here. The figures below show "
        "the same result."
    )
