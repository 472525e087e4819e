"use strict";
(async () => {
  const root = document.getElementById("viewer");
  const part = (name) => document.getElementById(`viewer-${name}`);
  const status = part("status");
  const fail = (text, error) => {
    part("body").hidden = true;
    status.hidden = false;
    status.textContent = `${text} The figures below show the same result.`;
    root.dataset.state = "failed";
    if (error) root.dataset.error = String(error);
  };
  window.addEventListener("error", (event) => { root.dataset.error = event.message; });
  window.addEventListener("unhandledrejection", (event) => { root.dataset.error = String(event.reason); });
  if (!document.createElement("canvas").getContext("webgl2") || !window.DecompressionStream) {
    fail("The viewer needs a current browser with WebGL2, which is missing or switched off here.");
    return;
  }

  const page = JSON.parse(part("settings").textContent);
  const take = (name) => { const node = part(`data-${name}`), text = node.textContent.trim(); node.remove(); return text; };
  const MAPS = {
    length: { R: [0, 59, 33, 94, 253], G: [0, 82, 145, 201, 231], B: [40, 139, 140, 98, 37], A: [10, 150, 210, 240, 255],
      I: [0, 64, 128, 192, 255] },
    volume: { R: [255, 5, 67, 247, 247, 214, 103], G: [0, 48, 147, 247, 247, 96, 0], B: [255, 97, 195, 247, 247, 77, 31],
      A: [255, 255, 220, 10, 10, 220, 255], I: [0, 4, 70, 124, 132, 185, 255] },
  };
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

  let base, overlays, labels, below, above;
  try {
    const unzipped = new Blob([bytes(take("niivue"))]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(unzipped).text();
    document.head.append(script);
    const load = ({ name, kind, low, high, colours: colormap }) => {
      const cal_min = kind === "map" ? low - (high - low) / 128 : low;  // overlays are not drawn at cal_min
      return niivue.NVImage.loadFromBase64({ base64: take(name), name: `${name}.nii.gz`, colormap, cal_min, cal_max: high });
    };
    part("body").hidden = false;
    const options = {
      isRadiologicalConvention: true, multiplanarShowRender: 0, dragAndDropEnabled: false, scrollRequiresFocus: true,
      dragMode: 0, crosshairWidth: 0, fontColor: [1, 1, 1, 0.9], fontMinPx: 14,
      multiplanarPadPixels: 4, logLevel: "error", clipPlaneHotKey: "", cycleClipPlaneHotKey: "", viewModeHotKey: "",
    };
    [below, above] = [new niivue.Niivue(options), new niivue.Niivue(options)];
    await below.attachToCanvas(part("fixed"));
    await above.attachToCanvas(part("other"));
    for (const [name, map] of Object.entries(MAPS)) { below.addColormap(name, map); above.addColormap(name, map); }
    const loaded = {};
    for (const volume of page.volumes) loaded[volume.name] = await load(volume);
    const named = (kind) => Object.fromEntries(
      page.volumes.filter((volume) => volume.kind === kind).map((volume) => [volume.name, loaded[volume.name]]));
    [base, overlays, labels] = ["scan", "map", "labels"].map(named);
    below.addVolume(base.fixed);
    above.addVolume(base.warped);
  } catch (error) {
    fail("The viewer could not start in this browser.", error);
    return;
  }

  const size = base.fixed.dims.slice(1, 4);
  const titles = Object.fromEntries(page.volumes.map((volume) => [volume.name, volume.title]));
  const lines = part("lines"), pen = lines.getContext("2d");
  let showsFixed = false;  // in the way "blink"

  const at = (volume, [x, y, z]) => volume.img[x + size[0] * (y + size[1] * z)];

  const kept = new Map();
  function keptBorders(name, plane, index) {
    const key = [name, plane.through, index].join();
    if (!kept.has(key)) {
      if (kept.size > 60) kept.clear();
      kept.set(key, borders(labels[name], size, plane, index));
    }
    return kept.get(key);
  }

  const other = () => part("with").value;
  const way = () => part("way").value;
  const amount = () => part("amount").value / 100;
  const voxel = () => [0, 1, 2].map((axis) => Math.min(size[axis] - 1, Math.floor(above.scene.crosshairPos[axis] * size[axis])));

  /** Draws outlines and the line of the swipe over the scans, and cuts the upper scan. */
  function finish() {
    [lines.width, lines.height] = [above.canvas.width, above.canvas.height];
    const scale = lines.clientWidth / lines.width, images = [], places = [], sizes = [], here = voxel();
    const shown = [["fixed_labels", part("outline-fixed")], [`${other()}_labels`, part("outline-other")]];
    for (const tile of above.screenSlices) {
      const plane = PLANES[tile.axCorSag], [left, top, width, height] = tile.leftTopWidthHeight;
      if (!plane) continue;
      const ends = [[0, 0, 0], [1, 1, 1]].map((fraction) => above.frac2mm(fraction));
      const x = (mm) => left + ((mm - tile.leftTopMM[0]) / tile.fovMM[0]) * width;
      const y = (mm) => top + height - ((mm - tile.leftTopMM[1]) / tile.fovMM[1]) * height;
      const place = (axis, index, to) => to(ends[0][axis] + ((index + 0.5) / size[axis]) * (ends[1][axis] - ends[0][axis]));
      pen.save();
      pen.beginPath(); pen.rect(left, top, width, height); pen.clip();
      for (const [name, box] of shown) {
        if (!labels[name] || !box.checked) continue;
        const thick = Math.max(1.2, 1.5 / scale);
        for (const [label, chains] of keptBorders(name, plane, here[plane.through])) {
          pen.beginPath();
          for (const chain of chains) {
            chain.forEach(([h, v], i) => pen[i ? "lineTo" : "moveTo"](place(plane.across, h, x), place(plane.up, v, y)));
          }
          const colours = page.organs[label - 1].colours;
          for (const [colour, wider] of [["#000000a0", 2], [name === "fixed_labels" ? colours[0] : colours[1], 1]]) {
            const dashes = { fixed_labels: [], moving_labels: [5, 3], warped_labels: [1.6, 1.6] }[name];
            pen.setLineDash(wider > 1 ? [] : dashes.map((length) => length * thick));
            pen.lineWidth = wider * thick; pen.strokeStyle = colour; pen.stroke();
          }
        }
      }
      if (part("crosshair").checked) {
        const [right, low] = [place(plane.across, here[plane.across], x), place(plane.up, here[plane.up], y)], gap = 8 / scale;
        pen.setLineDash([]);
        pen.beginPath();
        for (const [from, to] of [[left, right - gap], [right + gap, left + width]]) { pen.moveTo(from, low); pen.lineTo(to, low); }
        for (const [from, to] of [[top, low - gap], [low + gap, top + height]]) { pen.moveTo(right, from); pen.lineTo(right, to); }
        pen.lineWidth = 1 / scale; pen.strokeStyle = "#ffffff90"; pen.stroke();
      }
      pen.restore();
      if (way() === "swipe") {
        pen.fillStyle = "#ffd24d";
        pen.fillRect(left + amount() * width - 0.75 / scale, top, 1.5 / scale, height);
      }
      const percent = `${100 * amount()}%`;
      images.push(`linear-gradient(to right, transparent ${percent}, #000 ${percent})`);
      places.push(`${left * scale}px ${top * scale}px`);
      sizes.push(`${width * scale}px ${height * scale}px`);
    }
    const style = above.canvas.style, swiped = way() === "swipe";
    for (const prefix of ["mask", "-webkit-mask"]) {
      style.setProperty(`${prefix}-image`, swiped ? images.join() : "none");
      style.setProperty(`${prefix}-position`, places.join());
      style.setProperty(`${prefix}-size`, sizes.join());
      style.setProperty(`${prefix}-repeat`, "no-repeat");
    }
    style.opacity = { swipe: 1, blend: amount(), blink: showsFixed ? 0 : 1 }[way()];
  }

  const drawn = above.drawScene.bind(above);
  above.drawScene = () => {
    const text = drawn();
    Object.assign(below.scene, { crosshairPos: [...above.scene.crosshairPos], pan2Dxyzmm: [...above.scene.pan2Dxyzmm] });
    below.drawScene();
    finish();
    return text;
  };

  /** Writes what is at the crosshair, and moves the sliders of the slices there. */
  function read() {
    const here = voxel(), mm = above.frac2mm(above.scene.crosshairPos, 0, true);
    const words = [`x ${mm[0].toFixed(0)}, y ${mm[1].toFixed(0)}, z ${mm[2].toFixed(0)} mm`];
    for (const [name, volume] of Object.entries(overlays)) {
      const { title, unit } = page.volumes.find((each) => each.name === name);
      words.push(`${title} ${(at(volume, here) * volume.hdr.scl_slope).toFixed(2)}${unit && ` ${unit}`}`);
    }
    for (const name of ["fixed_labels", `${other()}_labels`]) {
      const label = labels[name] ? at(labels[name], here) : 0;
      if (label) words.push(`${titles[name]}: ${page.organs[label - 1].name}`);
    }
    part("readout").textContent = words.join(" · ");
    ["x", "y", "z"].forEach((axis, i) => { part(`slice-${axis}`).value = here[i]; });
  }
  above.onLocationChange = read;

  function go(position) {
    above.scene.crosshairPos = position;
    zoom();
    read();
  }

  /** Enlarges around the crosshair, which stays in its place. */
  function zoom() {
    const factor = Number(part("zoom").value), mm = above.frac2mm(above.scene.crosshairPos);
    above.setPan2Dxyzmm([...[0, 1, 2].map((axis) => mm[axis] * (1 - factor)), factor]);
  }

  function setVolumes() {
    const map = overlays[part("overlay").value];
    if (map) map.opacity = part("strength").value / 100;
    for (const [view, scan] of [[below, base.fixed], [above, base[other()]]]) {
      const wanted = map ? [scan, map] : [scan], before = [...view.volumes];
      for (const volume of wanted) if (!before.includes(volume)) view.addVolume(volume);
      view.setVolume(scan, 0);
      for (const volume of before) if (!wanted.includes(volume)) view.removeVolume(volume);
      view.updateGLVolume();
    }
    part("scale").hidden = !map;
    if (map) {
      const { name, low, high, unit, colours, note } = page.volumes.find((each) => each.name === part("overlay").value);
      const { R, G, B, I } = MAPS[colours];
      const stops = I.map((place, i) => `rgb(${R[i]} ${G[i]} ${B[i]}) ${(100 * place) / 255}%`);
      part("colours").style.background = `linear-gradient(to right, ${stops.join()})`;
      part("low").textContent = low;
      part("high").textContent = `${Number(high.toPrecision(3))} ${unit}`;
      part("note").textContent = note;
      root.dataset.overlay = name;
    }
    explain();
  }

  function explain() {
    const upper = titles[other()], lower = titles.fixed;
    part("amount-name").textContent = way() === "blend" ? "Share of the other scan" : "Place of the line";
    part("amount").disabled = way() === "blink";
    part("shown").textContent = {
      swipe: `Left of the line: ${lower}. Right of it: ${upper}.`,
      blend: `${Math.round(100 * amount())} % ${upper}, the rest ${lower}.`,
      blink: `Now: ${showsFixed ? lower : upper}.`,
    }[way()];
    part("outline-other-name").textContent = titles[`${other()}_labels`] || "";
    finish();
    read();
  }

  function blink() {
    showsFixed = way() === "blink" ? !showsFixed : true;
    part("way").value = "blink";
    explain();
  }

  for (const name of ["with", "overlay", "strength"]) part(name).addEventListener("input", setVolumes);
  for (const name of ["way", "amount"]) part(name).addEventListener("input", explain);
  for (const name of ["outline-fixed", "outline-other", "crosshair"]) part(name).addEventListener("input", finish);
  part("zoom").addEventListener("input", zoom);
  part("blink").addEventListener("click", blink);
  part("planes").addEventListener("input", () => {
    for (const view of [below, above]) view.setSliceType(Number(part("planes").value));
  });
  ["x", "y", "z"].forEach((axis, i) => {
    part(`slice-${axis}`).max = size[i] - 1;
    part(`slice-${axis}`).addEventListener("input", (event) => {
      const position = [...above.scene.crosshairPos];
      position[i] = (Number(event.target.value) + 0.5) / size[i];
      go(position);
    });
  });
  const STEPS = { ArrowLeft: [0, 1], ArrowRight: [0, -1], ArrowUp: [1, 1], ArrowDown: [1, -1], PageUp: [2, 1], PageDown: [2, -1] };
  above.canvas.addEventListener("keydown", (event) => {
    if (!(event.key in STEPS)) return;
    event.preventDefault();
    const [axis, step] = STEPS[event.key], position = [...above.scene.crosshairPos];
    position[axis] = Math.min(size[axis] - 0.5, Math.max(0.5, voxel()[axis] + 0.5 + step)) / size[axis];
    go(position);
  });
  document.addEventListener("keydown", (event) => {
    const typing = ["SELECT", "TEXTAREA"].includes(event.target.tagName);
    if (event.key.toLowerCase() === "b" && !event.ctrlKey && !event.metaKey && !event.altKey && !typing) blink();
  });

  setVolumes();
  go(page.start.map((index, axis) => (index + 0.5) / size[axis]));
  /** The number of pixels of a canvas that are not black, which shows that a scan was drawn. */
  const bright = ({ gl, canvas }) => {
    const pixels = new Uint8Array(4 * canvas.width * canvas.height);
    gl.readPixels(0, 0, canvas.width, canvas.height, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
    return pixels.reduce((count, value, i) => count + (i % 4 < 1 && value + pixels[i + 1] + pixels[i + 2] > 30), 0);
  };
  for (const [name, view] of [["fixed", below], ["other", above]]) {
    view.drawScene();
    root.dataset[name] = bright(view);
  }
  root.dataset.volumes = page.volumes.length;
  root.dataset.state = "ready";
  status.hidden = true;
})();
