"use strict";
/** The axes of the axial, the coronal and the sagittal plane. */
const PLANES = [{ across: 0, up: 1, through: 2 }, { across: 0, up: 2, through: 1 }, { across: 1, up: 2, through: 0 }];

/** Border lines of each label in a slice of a volume, by marching squares: [label, [[[across, up] in voxels, ...], ...]]. */
function borders(volume, size, { across, up, through }, index) {
  const [width, height] = [size[across], size[up]], cell = [0, 0, 0], found = new Map();
  cell[through] = index;
  const value = (h, v) => {
    if (h < 0 || v < 0 || h >= width || v >= height) return 0;
    cell[across] = h; cell[up] = v;
    return volume.img[cell[0] + size[0] * (cell[1] + size[1] * cell[2])];
  };
  const WAYS = { 1: "da", 2: "ab", 3: "db", 4: "bc", 5: "dabc", 6: "ac", 7: "dc", 8: "cd", 9: "ac", 10: "abcd", 11: "bc",
    12: "bd", 13: "ab", 14: "da" };
  for (let h = -1; h < width; h++) for (let v = -1; v < height; v++) {
    const corners = [value(h, v), value(h + 1, v), value(h + 1, v + 1), value(h, v + 1)];
    if (corners.every((corner) => corner === corners[0])) continue;
    const middle = { a: [2 * h + 1, 2 * v], b: [2 * h + 2, 2 * v + 1], c: [2 * h + 1, 2 * v + 2], d: [2 * h, 2 * v + 1] };
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
