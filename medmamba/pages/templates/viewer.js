// Draws one slice of a volume that the page holds as a picture: red image, green truth, blue prediction.
(function () {
  "use strict";
  const data = JSON.parse(document.getElementById("v-data").textContent);
  const part = (name) => document.getElementById("v-" + name);
  const canvas = part("canvas"), context = canvas.getContext("2d");
  const AXES = ["sagittal", "coronal", "axial"];
  let pixels = null, shape = [1, 1, 1], spacing = [1, 1, 1];

  data.cases.forEach((one, index) => part("case").add(new Option(one.title, index)));
  AXES.forEach((name, index) => part("axis").add(new Option(name, index)));

  function load() {
    const one = data.cases[Number(part("case").value)];
    const sheet = new Image();
    sheet.onload = () => {
      const room = document.createElement("canvas");
      room.width = sheet.width; room.height = sheet.height;
      const inside = room.getContext("2d", { willReadFrequently: true });
      inside.drawImage(sheet, 0, 0);
      pixels = inside.getImageData(0, 0, sheet.width, sheet.height).data;
      shape = one.shape; spacing = one.spacing;
      toMiddle();
    };
    sheet.src = one.sheet;
  }

  // the slice with most of truth and prediction
  function toMiddle() {
    const axis = Number(part("axis").value);
    const stride = [shape[1] * shape[2], shape[2], 1][axis];
    const counts = new Array(shape[axis]).fill(0);
    for (let voxel = 0; 4 * voxel < pixels.length; voxel++)
      if (pixels[4 * voxel + 1] || pixels[4 * voxel + 2]) counts[Math.floor(voxel / stride) % shape[axis]]++;
    part("slice").max = shape[axis] - 1;
    part("slice").value = counts.indexOf(Math.max(...counts));
    draw();
  }

  function draw() {
    if (!pixels) return;
    const axis = Number(part("axis").value), index = Number(part("slice").value);
    const [columns, rows] = [0, 1, 2].filter((other) => other !== axis);
    const height = shape[rows], width = shape[columns];
    const scale = 480 / Math.max(height * spacing[rows], width * spacing[columns]);
    canvas.width = Math.max(1, Math.round(width * spacing[columns] * scale));
    canvas.height = Math.max(1, Math.round(height * spacing[rows] * scale));
    const picture = context.createImageData(canvas.width, canvas.height);
    const voxel = (y, x) => {
      const at = [0, 0, 0];
      at[axis] = index;
      at[rows] = Math.min(height - 1, Math.floor((y * height) / canvas.height));
      at[columns] = Math.min(width - 1, Math.floor((x * width) / canvas.width));
      return 4 * ((at[0] * shape[1] + at[1]) * shape[2] + at[2]);
    };
    const truth = part("truth").checked, prediction = part("prediction").checked, fill = part("fill").checked;
    for (let y = 0; y < canvas.height; y++)
      for (let x = 0; x < canvas.width; x++) {
        const here = voxel(y, x), target = 4 * (y * canvas.width + x);
        let colour = [pixels[here], pixels[here], pixels[here]];
        const edge = (channel) => {
          const own = pixels[here + channel];
          if (!own) return false;
          return [[0, 1], [1, 0], [0, -1], [-1, 0]].some(([dy, dx]) => {
            const [v, u] = [y + 2 * dy, x + 2 * dx];
            if (v < 0 || u < 0 || v >= canvas.height || u >= canvas.width) return true;
            return pixels[voxel(v, u) + channel] !== own;
          });
        };
        const found = pixels[here + 2];
        if (prediction && found && fill) colour = mix(colour, tint(found), 0.4);
        if (prediction && edge(2)) colour = tint(found);
        if (truth && edge(1)) colour = [255, 255, 255];
        picture.data.set([colour[0], colour[1], colour[2], 255], target);
      }
    context.putImageData(picture, 0, 0);
    part("place").textContent = index + 1 + " of " + shape[axis];
  }

  function tint(label) {
    const text = data.colours[(label - 1) % data.colours.length];
    return [1, 3, 5].map((start) => parseInt(text.slice(start, start + 2), 16));
  }
  const mix = (first, second, share) => first.map((value, i) => (1 - share) * value + share * second[i]);

  part("case").addEventListener("change", load);
  part("axis").addEventListener("change", toMiddle);
  part("slice").addEventListener("input", draw);
  for (const name of ["truth", "prediction", "fill"]) part(name).addEventListener("change", draw);
  for (const link of document.querySelectorAll("[data-case]"))
    link.addEventListener("click", () => { part("case").value = link.dataset.case; load(); });
  load();
})();
