// Shows the volumes of #v-data in linked planes inside #viewer; pages/volume.py says what the data are.
(function () {
  "use strict";
  const root = document.getElementById("viewer");
  const data = JSON.parse(document.getElementById("v-data").textContent);
  const PLANES = [ // of arrays whose axes run to the left, posterior, inferior
    { name: "axial", axis: 2, across: 0, down: 1 },
    { name: "sagittal", axis: 0, across: 1, down: 2 },
    { name: "coronal", axis: 1, across: 0, down: 2 },
  ];
  const CROSSHAIR = ["#4cd0e0", "#7ddc6a", "#f0a0d0"]; // of the axes: the colour of the plane across each
  const LETTER = { S: "S (H)", I: "I (F)" }; // superior is also called head, inferior foot
  const HELP = [
    ["click, drag", "move the crosshair; the other planes follow"],
    ["wheel, Page Up, Page Down", "slices; Home and End: the first and the last"],
    ["arrow keys", "move the crosshair in the plane"],
    ["right drag", "window (sideways) and level (up and down)"],
    ["Ctrl + wheel, + and −, pinch", "zoom"],
    ["Shift + drag, middle drag", "pan"],
    ["double click, Enter", "one plane large, and back"],
    ["T, P, F, L, X", "truth, prediction, filling, all labels, crosshair"],
    ...(data.cases.some((one) => one.errors) ? [["U", "chance of error"]] : []),
    ["N, B", "next case, case before"],
    ["0", "everything as at the beginning"],
  ];

  const make = (tag, attributes = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), attributes);
    made.append(...children);
    return made;
  };
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const rgb = (text) => [1, 3, 5].map((start) => parseInt(text.slice(start, start + 2), 16));
  const tints = data.colours.map(rgb);
  const colourOf = (label) => (label - 1) % data.colours.length;

  // What is shown: a case with its pixels (red image, green truth, blue prediction), a place in it, a window, a view.
  let volume = null, pixels = null, photograph = null, errors = null, grey = new Uint8ClampedArray(256), waiting = false;
  const state = { place: [0, 0, 0], width: 1, level: 0, zoom: 1, pan: [0, 0], hidden: new Set() };

  // ---- controls ----
  const select = make("select", { id: "v-case" });
  data.cases.forEach((one, index) => select.add(new Option(one.title, index)));
  const button = (text, title, act) => make("button", { type: "button", textContent: text, title, onclick: act });
  const check = (id, text, checked) => {
    const input = make("input", { type: "checkbox", id: "v-" + id, checked, onchange: draw });
    return { input, label: make("label", {}, input, text) };
  };
  const slide = (id, text, act) => {
    const input = make("input", { type: "range", id: "v-" + id, step: "any", oninput: () => act(Number(input.value)) });
    const output = make("output");
    return { input, output, label: make("label", {}, make("span", { className: "name", textContent: text }), input, output) };
  };
  const truth = check("truth", "truth (white)", true);
  const prediction = check("prediction", "prediction (colour)", true);
  const uncertain = check("uncertain", "chance of error (yellow to red)", true);
  truth.label.style.display = data.truth ? "" : "none";
  uncertain.label.style.display = data.cases.some((one) => one.errors) ? "" : "none";
  const crosshair = check("crosshair", "crosshair", true);
  const smooth = check("smooth", "smooth", true);
  const width = slide("width", "window", (value) => setWindow(value, state.level));
  const level = slide("level", "level", (value) => setWindow(state.width, value));
  const opacity = slide("opacity", "filling", () => { opacity.output.textContent = opacity.input.value + " %"; draw(); });
  Object.assign(opacity.input, { min: 0, max: 100, step: 5, value: 20 });
  const boxes = data.names.map((name, index) => {
    const swatch = make("span", { className: "swatch" });
    swatch.style.background = data.colours[colourOf(index + 1)];
    const input = make("input", { type: "checkbox", checked: true, onchange: () => show(index + 1, input.checked) });
    return { input, label: make("label", {}, input, swatch, name) };
  });
  const readout = make("div", { className: "readout", id: "v-readout" });
  readout.setAttribute("aria-live", "polite");
  const presets = make("div", { className: "buttons", id: "v-presets" },
    button("full range", "from the smallest to the largest intensity", () => setWindow(volume.range[1] - volume.range[0],
      (volume.range[0] + volume.range[1]) / 2)),
    button("initial", "as the case was opened", () => setWindow(volume.window[0], volume.window[1])),
    ...data.presets.map(([name, wide, middle]) =>
      button(name, "window " + wide + ", level " + middle + " HU", () => setWindow(wide, middle))));
  const help = make("dl", {}, ...HELP.flatMap(([keys, what]) =>
    [make("dt", { textContent: keys }), make("dd", { textContent: what })]));

  const panes = PLANES.map((plane) => {
    const canvas = make("canvas", { id: "v-" + plane.name, tabIndex: 0 });
    canvas.setAttribute("role", "application");
    const slider = make("input", { type: "range", min: 0, oninput: () => go(plane.axis, Number(slider.value)) });
    slider.setAttribute("aria-label", plane.name + " slice");
    const output = make("output");
    const element = make("div", { className: "pane" }, canvas, make("div", {}, output, slider));
    return { ...plane, canvas, slider, output, element, pane: element };
  });
  const panel = make("div", { className: "panel" }, truth.label, prediction.label, uncertain.label, opacity.label,
    make("div", { className: "labels" }, ...boxes.map((box) => box.label)), width.label, level.label, presets,
    make("div", { className: "buttons" }, crosshair.label, smooth.label, button("−", "zoom out", () => zoomBy(1 / 1.25)),
      button("+", "zoom in", () => zoomBy(1.25)), button("reset", "everything as at the beginning", open)),
    readout, make("details", {}, make("summary", { textContent: "Mouse and keys" }), help));
  const grid = make("div", { className: "panes" }, ...panes.map((pane) => pane.element), panel);
  root.replaceChildren(make("div", { className: "bar" }, make("label", {}, "Case ", select),
    button("‹", "case before (B)", () => step(-1)), button("›", "next case (N)", () => step(1))), grid);

  // ---- cases ----
  function read(address) {
    return new Promise((done) => {
      const sheet = new Image();
      sheet.onload = () => {
        const room = make("canvas", { width: sheet.width, height: sheet.height });
        const inside = room.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
        inside.drawImage(sheet, 0, 0);
        done(inside.getImageData(0, 0, sheet.width, sheet.height).data);
      };
      sheet.src = address;
    });
  }

  async function load() {
    const chosen = data.cases[Number(select.value)];
    const found = await Promise.all([chosen.sheet, chosen.photograph, chosen.errors].map((one) => one && read(one)));
    if (chosen !== data.cases[Number(select.value)]) return; // another case was chosen meanwhile
    volume = chosen;
    [pixels, photograph, errors] = found;
    const flat = volume.shape.indexOf(1);
    for (const pane of panes) {
      pane.element.hidden = flat >= 0 && pane.axis !== volume.plane;
      pane.element.style.display = pane.element.hidden ? "none" : "";
      pane.element.lastChild.style.display = volume.shape[pane.axis] === 1 ? "none" : "";
      pane.slider.max = volume.shape[pane.axis] - 1;
      const what = volume.letters[pane.axis] ? pane.name + " slices of " : "slices of ";
      pane.canvas.setAttribute("aria-label", what + volume.title + ". Arrow keys move the crosshair, Page Up and Page Down change the slice.");
    }
    grid.classList.toggle("flat", flat >= 0);
    const span = volume.range[1] - volume.range[0];
    Object.assign(width.input, { min: span / 255, max: 2 * span });
    Object.assign(level.input, { min: volume.range[0], max: volume.range[1] });
    crosshair.input.checked = flat < 0;
    open();
  }

  // The beginning: the slices with most of truth and prediction, or with most errors to expect; the initial window, no zoom.
  function open() {
    const [, rows, columns] = volume.shape, counts = volume.shape.map((size) => new Uint32Array(size));
    for (let voxel = 0, at = 0; at < pixels.length; voxel++, at += 4)
      if (pixels[at + 1] || pixels[at + 2] || (errors && errors[at])) {
        const much = errors ? errors[at] : 1;
        counts[0][Math.floor(voxel / (rows * columns))] += much;
        counts[1][Math.floor(voxel / columns) % rows] += much;
        counts[2][voxel % columns] += much;
      }
    state.place = counts.map((count) => {
      const most = Math.max(...count);
      return most ? count.indexOf(most) : count.length >> 1;
    });
    Object.assign(state, { zoom: 1, pan: [0, 0] });
    grid.classList.remove("large");
    opacity.output.textContent = opacity.input.value + " %";
    setWindow(volume.window[0], volume.window[1]);
  }

  function step(by) {
    select.value = (Number(select.value) + by + data.cases.length) % data.cases.length;
    load();
  }

  function setWindow(wide, middle) {
    const [low, high] = volume.range, span = high - low || 1;
    state.width = Math.max(span / 255, wide);
    state.level = middle;
    for (let value = 0; value < 256; value++)
      grey[value] = Math.round(255 * ((low + (span * value) / 255 - middle) / state.width + 0.5));
    for (const [slider, value] of [[width, state.width], [level, middle]]) {
      slider.input.value = value;
      slider.output.textContent = value.toFixed(span < 20 ? 2 : 0) + (data.unit ? " " + data.unit : "");
    }
    draw();
  }

  function go(axis, index) {
    state.place[axis] = clamp(Math.round(index), 0, volume.shape[axis] - 1);
    draw();
  }

  function show(label, visible) {
    if (visible) state.hidden.delete(label); else state.hidden.add(label);
    draw();
  }

  function zoomBy(factor, pane, x = 0, y = 0) {
    const before = state.zoom;
    state.zoom = clamp(state.zoom * factor, 0.5, 30);
    const ratio = state.zoom / before; // what is under the pointer stays there
    state.pan = [x - (x - state.pan[0]) * ratio, y - (y - state.pan[1]) * ratio];
    draw();
  }

  // ---- drawing ----
  const byte = (i, j, k) => 4 * ((i * volume.shape[1] + j) * volume.shape[2] + k);

  function voxels(pane) { // the place of the first voxel of a slice in the pixels, and the steps to the next ones
    const strides = [volume.shape[1] * volume.shape[2], volume.shape[2], 1].map((stride) => 4 * stride);
    return { first: strides[pane.axis] * state.place[pane.axis], right: strides[pane.across], below: strides[pane.down] };
  }

  function view(pane) { // from voxels of a slice to pixels of its canvas
    const { canvas } = pane, ratio = canvas.width / (canvas.clientWidth || 1);
    const wide = volume.shape[pane.across] * volume.spacing[pane.across];
    const high = volume.shape[pane.down] * volume.spacing[pane.down];
    const scale = Math.min(canvas.width / wide, canvas.height / high) * state.zoom;
    return {
      ratio, x: scale * volume.spacing[pane.across], y: scale * volume.spacing[pane.down],
      left: (canvas.width - wide * scale) / 2 + state.pan[0] * ratio,
      top: (canvas.height - high * scale) / 2 + state.pan[1] * ratio,
    };
  }

  function draw() {
    if (waiting || !volume) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; panes.forEach(drawPane); describe(); });
  }

  function drawPane(pane) {
    const { canvas, slider, output } = pane;
    if (pane.element.hidden || !canvas.clientWidth) return;
    const ratio = window.devicePixelRatio || 1;
    const size = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
    if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
    const context = canvas.getContext("2d"), at = view(pane);
    const columns = volume.shape[pane.across], rows = volume.shape[pane.down];
    const ground = new ImageData(columns, rows), filling = new ImageData(columns, rows), heat = new ImageData(columns, rows);
    const { first, right, below } = voxels(pane);
    for (let y = 0, target = 0; y < rows; y++)
      for (let x = 0; x < columns; x++, target += 4) {
        const here = first + x * right + y * below;
        for (let channel = 0; channel < 3; channel++)
          ground.data[target + channel] = grey[photograph ? photograph[here + channel] : pixels[here]];
        ground.data[target + 3] = 255;
        const label = prediction.input.checked ? pixels[here + 2] : truth.input.checked ? pixels[here + 1] : 0;
        if (label && !state.hidden.has(label)) filling.data.set([...tints[colourOf(label)], 255], target);
        const chance = errors && uncertain.input.checked ? errors[here] : 0; // in percent
        if (chance) heat.data.set([255, 230 - 2.3 * chance, 40, 60 + 1.2 * chance], target);
      }
    context.fillStyle = "#000";
    context.fillRect(0, 0, canvas.width, canvas.height);
    const box = [at.left, at.top, columns * at.x, rows * at.y];
    context.imageSmoothingEnabled = smooth.input.checked;
    context.drawImage(bitmap(ground), ...box);
    context.imageSmoothingEnabled = false;
    context.globalAlpha = Number(opacity.input.value) / 100;
    context.drawImage(bitmap(filling), ...box);
    context.globalAlpha = 1;
    if (errors) context.drawImage(bitmap(heat), ...box);
    if (truth.input.checked) outlines(context, pane, at, 1);
    if (prediction.input.checked) outlines(context, pane, at, 2);
    if (crosshair.input.checked) cross(context, pane, at);
    letters(context, pane, at);
    slider.value = state.place[pane.axis];
    const number = volume.letters[pane.axis] ? volume.shape[pane.axis] - state.place[pane.axis] : state.place[pane.axis] + 1;
    output.textContent = (volume.letters[pane.axis] ? pane.name : "slice") + " " + number + " of " + volume.shape[pane.axis];
  }

  function bitmap(image) {
    const room = make("canvas", { width: image.width, height: image.height });
    room.getContext("2d").putImageData(image, 0, 0);
    return room;
  }

  // Lines between voxels of different labels; channel 1 is the truth, in white and wider, so that both can be seen.
  function outlines(context, pane, at, channel) {
    const columns = volume.shape[pane.across], rows = volume.shape[pane.down], paths = new Map();
    const { first, right, below } = voxels(pane);
    const label = (x, y) => (x < 0 || y < 0 || x >= columns || y >= rows ? 0 : pixels[first + x * right + y * below + channel]);
    for (let y = 0; y < rows; y++)
      for (let x = 0; x < columns; x++) {
        const own = label(x, y);
        if (!own || state.hidden.has(own)) continue;
        const colour = channel === 1 ? "#fff" : data.colours[colourOf(own)];
        const line = (x0, y0, x1, y1) => {
          if (!paths.has(colour)) paths.set(colour, new Path2D());
          paths.get(colour).moveTo(at.left + x0 * at.x, at.top + y0 * at.y);
          paths.get(colour).lineTo(at.left + x1 * at.x, at.top + y1 * at.y);
        };
        if (label(x - 1, y) !== own) line(x, y, x, y + 1);
        if (label(x + 1, y) !== own) line(x + 1, y, x + 1, y + 1);
        if (label(x, y - 1) !== own) line(x, y, x + 1, y);
        if (label(x, y + 1) !== own) line(x, y + 1, x + 1, y + 1);
      }
    context.lineCap = "round";
    context.lineWidth = (channel === 1 ? 3 : 1.5) * at.ratio;
    for (const [colour, path] of paths) {
      context.strokeStyle = colour;
      context.stroke(path);
    }
  }

  function cross(context, pane, at) {
    const x = at.left + (state.place[pane.across] + 0.5) * at.x, y = at.top + (state.place[pane.down] + 0.5) * at.y;
    const gap = 10 * at.ratio, { width: wide, height: high } = context.canvas;
    context.lineWidth = at.ratio;
    context.globalAlpha = 0.8;
    for (const [colour, lines] of [
      [CROSSHAIR[pane.across], [[x, 0, x, y - gap], [x, y + gap, x, high]]],
      [CROSSHAIR[pane.down], [[0, y, x - gap, y], [x + gap, y, wide, y]]],
    ]) {
      context.strokeStyle = colour;
      context.beginPath();
      for (const [x0, y0, x1, y1] of lines) { context.moveTo(x0, y0); context.lineTo(x1, y1); }
      context.stroke();
    }
    context.globalAlpha = 1;
  }

  function letters(context, pane, at) {
    const across = volume.letters[pane.across], down = volume.letters[pane.down];
    if (!across) return;
    const edge = 6 * at.ratio, { width: wide, height: high } = context.canvas;
    context.font = "600 " + 14 * at.ratio + "px system-ui,sans-serif";
    const text = (letter, x, y, align, baseline) => {
      Object.assign(context, { textAlign: align, textBaseline: baseline, strokeStyle: "#000", fillStyle: "#ffd75e", lineWidth: 3 * at.ratio });
      context.strokeText(LETTER[letter] || letter, x, y);
      context.fillText(LETTER[letter] || letter, x, y);
    };
    text(across[0], edge, high / 2, "left", "middle");
    text(across[1], wide - edge, high / 2, "right", "middle");
    text(down[0], wide / 2, edge, "center", "top");
    text(down[1], wide / 2, high - edge, "center", "bottom");
    context.fillStyle = CROSSHAIR[pane.axis];
    context.fillRect(0, 0, wide, 2 * at.ratio); // the colour of this plane's line in the others
  }

  function describe() {
    const here = byte(...state.place), [low, high] = volume.range;
    const name = (label) => (label ? data.names[label - 1] || "label " + label : "–");
    const value = photograph ? [0, 1, 2].map((channel) => photograph[here + channel]).join(", ")
      : (low + ((high - low) * pixels[here]) / 255).toFixed(high - low < 20 ? 2 : 0) + (data.unit ? " " + data.unit : "");
    readout.textContent = "At the crosshair: " + value + "; " +
      (data.truth ? "truth " + name(pixels[here + 1]) + ", " : "") + "prediction " + name(pixels[here + 2]) +
      (errors ? ", chance of error " + errors[here] + " %" : "");
  }

  // ---- pointer ----
  for (const pane of panes) {
    const { canvas } = pane, touches = new Map();
    let drag = null, scrolled = 0;
    const toPlace = (event) => {
      const at = view(pane), box = canvas.getBoundingClientRect();
      const x = ((event.clientX - box.left) * at.ratio - at.left) / at.x, y = ((event.clientY - box.top) * at.ratio - at.top) / at.y;
      state.place[pane.across] = clamp(Math.floor(x), 0, volume.shape[pane.across] - 1);
      state.place[pane.down] = clamp(Math.floor(y), 0, volume.shape[pane.down] - 1);
      draw();
    };
    const middle = (event) => { // of the canvas to the pointer
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
    };
    const apart = () => { const [a, b] = [...touches.values()]; return Math.hypot(a[0] - b[0], a[1] - b[1]); };
    canvas.addEventListener("pointerdown", (event) => {
      if (!volume) return;
      canvas.focus({ preventScroll: true });
      canvas.setPointerCapture(event.pointerId);
      touches.set(event.pointerId, [event.clientX, event.clientY]);
      const kind = event.button === 2 ? "window" : event.button === 1 || event.shiftKey ? "pan" : "cross";
      drag = { kind: touches.size > 1 ? "pinch" : kind, x: event.clientX, y: event.clientY };
      if (drag.kind === "pinch") drag.apart = apart();
      if (drag.kind === "cross") toPlace(event);
      event.preventDefault();
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!drag) return;
      touches.set(event.pointerId, [event.clientX, event.clientY]);
      const [x, y] = [event.clientX - drag.x, event.clientY - drag.y];
      if (drag.kind === "cross") toPlace(event);
      if (drag.kind === "pan") { state.pan = [state.pan[0] + x, state.pan[1] + y]; draw(); }
      if (drag.kind === "window") {
        const unit = (volume.range[1] - volume.range[0]) / 300;
        setWindow(state.width + x * unit, state.level - y * unit);
      }
      if (drag.kind === "pinch" && touches.size === 2) {
        const now = apart();
        zoomBy(now / drag.apart, pane, ...middle(event));
        drag.apart = now;
      }
      [drag.x, drag.y] = [event.clientX, event.clientY];
    });
    for (const end of ["pointerup", "pointercancel"])
      canvas.addEventListener(end, (event) => { touches.delete(event.pointerId); drag = null; });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("dblclick", () => enlarge(pane));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (event.ctrlKey) { zoomBy(event.deltaY < 0 ? 1.15 : 1 / 1.15, pane, ...middle(event)); return; }
      scrolled += event.deltaMode ? 40 * event.deltaY : event.deltaY;
      if (Math.abs(scrolled) < 40) return; // a touchpad sends many small movements
      go(pane.axis, state.place[pane.axis] + Math.sign(scrolled));
      scrolled = 0;
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const { axis, across, down } = pane, at = state.place;
      const acts = {
        ArrowLeft: () => go(across, at[across] - 1), ArrowRight: () => go(across, at[across] + 1),
        ArrowUp: () => go(down, at[down] - 1), ArrowDown: () => go(down, at[down] + 1),
        PageUp: () => go(axis, at[axis] - 1), PageDown: () => go(axis, at[axis] + 1),
        Home: () => go(axis, 0), End: () => go(axis, volume.shape[axis]), Enter: () => enlarge(pane),
      };
      if (!volume || event.ctrlKey || event.metaKey || event.altKey || !acts[event.key]) return;
      event.preventDefault();
      acts[event.key]();
    });
  }

  function enlarge(pane) {
    const large = !(grid.classList.contains("large") && pane.element.classList.contains("chosen"));
    for (const other of panes) other.element.classList.toggle("chosen", other === pane);
    grid.classList.toggle("large", large);
    draw();
  }

  // ---- keys of the whole viewer ----
  const flip = (one) => { one.input.checked = !one.input.checked; draw(); };
  const KEYS = {
    t: () => data.truth && flip(truth), u: () => errors && flip(uncertain), p: () => flip(prediction), x: () => flip(crosshair), n: () => step(1), b: () => step(-1),
    f: () => { opacity.input.value = Number(opacity.input.value) ? 0 : 20; opacity.input.dispatchEvent(new Event("input")); },
    l: () => {
      const all = state.hidden.size === 0; // hide all, or show all again
      boxes.forEach((box, index) => { box.input.checked = !all; if (all) state.hidden.add(index + 1); });
      if (!all) state.hidden.clear();
      draw();
    },
    "+": () => zoomBy(1.25), "=": () => zoomBy(1.25), "-": () => zoomBy(1 / 1.25), "0": open,
  };
  root.addEventListener("keydown", (event) => {
    const act = KEYS[event.key.toLowerCase()];
    if (!volume || !act || event.target === select || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  });

  select.addEventListener("change", load);
  for (const link of document.querySelectorAll("[data-case]"))
    link.addEventListener("click", () => { select.value = link.dataset.case; load(); });
  new ResizeObserver(draw).observe(grid);
  if (data.cases.length) load();
})();
