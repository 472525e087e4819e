"use strict";
(async () => {
  const root = document.getElementById("viewer");
  const part = (name) => document.getElementById(`viewer-${name}`);
  const status = part("status");
  const fail = (text, error) => {
    part("body").hidden = true;
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
  const take = (name) => {
    const node = part(`data-${name}`);
    node.remove();
    return node.textContent.trim();
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
      const file = { base64: take(name), name: `${name}.nii.gz` };
      return niivue.NVImage.loadFromBase64({ ...file, colormap, cal_min, cal_max: high });
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
  const voxel = () => size.map((length, i) => Math.min(length - 1, Math.floor(above.scene.crosshairPos[i] * length)));

  /** Draws outlines, crosshair and the line of the swipe over the scans, and cuts the upper scan. */
  function finish() {
    [lines.width, lines.height] = [above.canvas.width, above.canvas.height];
    const scale = lines.clientWidth / lines.width, swiped = way() === "swipe", layers = [], here = voxel();
    for (const tile of above.screenSlices) {
      const plane = PLANES[tile.axCorSag], [left, top, width, height] = tile.leftTopWidthHeight;
      if (!plane) continue;
      const [first, last] = [[0, 0, 0], [1, 1, 1]].map((fraction) => above.frac2mm(fraction));
      const mm = (axis, index) => first[axis] + ((index + 0.5) / size[axis]) * (last[axis] - first[axis]);
      const place = ([h, v]) => [
        left + ((mm(plane.across, h) - tile.leftTopMM[0]) / tile.fovMM[0]) * width,
        top + height - ((mm(plane.up, v) - tile.leftTopMM[1]) / tile.fovMM[1]) * height,
      ];
      pen.save();
      pen.beginPath();
      pen.rect(left, top, width, height);
      pen.clip();
      for (const [name, box] of [["fixed_labels", "outline-fixed"], [`${other()}_labels`, "outline-other"]]) {
        if (!labels[name] || !part(box).checked) continue;
        const wide = Math.max(1.2, 1.5 / scale), dashes = DASHES[name].map((length) => length * wide);
        for (const [label, chains] of keptBorders(name, plane, here[plane.through])) {
          const border = chains.map((chain) => chain.map(place));
          stroke(pen, border, "#000000a0", 2 * wide);
          stroke(pen, border, page.organs[label - 1].colours[name === "fixed_labels" ? 0 : 1], wide, dashes);
        }
      }
      if (part("crosshair").checked) {
        const [x, y] = place([here[plane.across], here[plane.up]]), gap = 8 / scale;
        const across = [[[left, y], [x - gap, y]], [[x + gap, y], [left + width, y]]];
        const up = [[[x, top], [x, y - gap]], [[x, y + gap], [x, top + height]]];
        stroke(pen, [...across, ...up], "#ffffff90", 1 / scale);
      }
      const line = left + amount() * width;
      if (swiped) stroke(pen, [[[line, top], [line, top + height]]], "#ffd24d", 1.5 / scale);
      pen.restore();
      layers.push([left, top, width, height].map((length) => `${length * scale}px`));
    }
    const style = above.canvas.style, percent = `${100 * amount()}%`;
    const cut = `linear-gradient(to right, transparent ${percent}, #000 ${percent})`;
    const mask = layers.map(([left, top, width, height]) => `${cut} ${left} ${top} / ${width} ${height} no-repeat`);
    for (const name of ["-webkit-mask", "mask"]) style.setProperty(name, swiped ? mask.join() : "none");
    style.opacity = { swipe: 1, blend: amount(), blink: showsFixed ? 0 : 1 }[way()];
  }

  const drawn = above.drawScene.bind(above);
  above.drawScene = () => {
    const text = drawn();
    below.scene.crosshairPos = [...above.scene.crosshairPos];
    below.scene.pan2Dxyzmm = [...above.scene.pan2Dxyzmm];
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
  root.viewers = { fixed: below, other: above };  // for tests, and for the console
  root.dataset.volumes = page.volumes.length;
  root.dataset.state = "ready";
  status.hidden = true;
})();
