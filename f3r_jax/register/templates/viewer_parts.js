"use strict";
/** The axes of the axial, the coronal and the sagittal plane. */
const PLANES = [{ across: 0, up: 1, through: 2 }, { across: 0, up: 2, through: 1 }, { across: 1, up: 2, through: 0 }];

/** The step of the crosshair that a key makes: [axis, voxels]. The patient's right is on the left. */
const STEPS = { ArrowLeft: [0, 1], ArrowRight: [0, -1], ArrowUp: [1, 1], ArrowDown: [1, -1], PageUp: [2, 1],
  PageDown: [2, -1] };

/** The dashes of outlines in line widths, as in the figures. */
const DASHES = { fixed_labels: [], moving_labels: [5, 3], warped_labels: [1.6, 1.6] };

/** The colours of the overlays: levels of red, green, blue and opacity at the places I of 0 to 255. */
const MAPS = {
  length: { R: [0, 59, 33, 94, 253], G: [0, 82, 145, 201, 231], B: [40, 139, 140, 98, 37], A: [10, 150, 210, 240, 255],
    I: [0, 64, 128, 192, 255] },
  volume: { R: [255, 5, 67, 247, 247, 214, 103], G: [0, 48, 147, 247, 247, 96, 0], B: [255, 97, 195, 247, 247, 77, 31],
    A: [255, 255, 220, 10, 10, 220, 255], I: [0, 4, 70, 124, 132, 185, 255] },
};

/** Border lines of each label in a slice by marching squares: [label, [[[across, up], ...], ...]], in voxels. */
function borders(volume, size, { across, up, through }, index) {
  const [width, height] = [size[across], size[up]], cell = [0, 0, 0], found = new Map();
  cell[through] = index;
  const value = (h, v) => {
    if (h < 0 || v < 0 || h >= width || v >= height) return 0;
    cell[across] = h; cell[up] = v;
    return volume.img[cell[0] + size[0] * (cell[1] + size[1] * cell[2])];
  };
  const WAYS = { 1: "da", 2: "ab", 3: "db", 4: "bc", 5: "dabc", 6: "ac", 7: "dc", 8: "cd", 9: "ac", 10: "abcd",
    11: "bc", 12: "bd", 13: "ab", 14: "da" };
  for (let h = -1; h < width; h++) for (let v = -1; v < height; v++) {
    const corners = [value(h, v), value(h + 1, v), value(h + 1, v + 1), value(h, v + 1)];
    if (corners.every((corner) => corner === corners[0])) continue;
    const [x, y] = [2 * h, 2 * v], middle = { a: [x + 1, y], b: [x + 2, y + 1], c: [x + 1, y + 2], d: [x, y + 1] };
    for (const label of new Set(corners)) {
      if (!label) continue;
      const ways = WAYS[corners.reduce((code, corner, bit) => code + (corner === label) * 2 ** bit, 0)];
      if (!found.has(label)) found.set(label, new Map());
      const ends = found.get(label);
      for (let i = 0; i < ways.length; i += 2) {
        const [from, to] = [middle[ways[i]], middle[ways[i + 1]]];
        for (const [start, end] of [[from, to], [to, from]]) {
          const key = start.join();
          ends.set(key, [...(ends.get(key) || []), end]);
        }
      }
    }
  }
  return [...found].map(([label, ends]) => [label, chained(ends)]);
}

/** Lines that follow the segments from end to end, so that dashes are even. */
function chained(ends) {
  const chains = [];
  for (const start of ends.keys()) {
    let point = start.split(",").map(Number);
    const chain = [point];
    while (ends.get(point.join())?.length) {
      const next = ends.get(point.join()).pop(), back = ends.get(next.join());
      back.splice(back.findIndex((other) => other.join() === point.join()), 1);
      chain.push(next);
      point = next;
    }
    if (chain.length > 1) chains.push(chain.map(([h, v]) => [h / 2, v / 2]));
  }
  return chains;
}

/** Draws lines, each a list of points. */
function stroke(pen, lines, colour, width, dashes = []) {
  pen.beginPath();
  for (const line of lines) line.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
  pen.setLineDash(dashes);
  pen.strokeStyle = colour;
  pen.lineWidth = width;
  pen.stroke();
}
