/* The report: cursor, smoothing and scale of curves; the confusion matrix; the gallery and its viewer. */
const report = readBlock("segwright-report");
const SVG = "http://www.w3.org/2000/svg";

/* ---------------------------------------------------------------------------------------------------- curves */

class Plot {
  constructor(node) {
    this.node = node;
    this.svg = $("svg", node);
    this.chart = report.charts.find((chart) => chart.id === node.dataset.chart);
    this.box = JSON.parse(node.dataset.box);
    this.x = JSON.parse(node.dataset.x);
    this.y = JSON.parse(node.dataset.y);
    this.readout = node.parentNode.querySelector(".readout");
    this.axis = $('[data-g="y-axis"]', this.svg);
    this.paths = this.chart.series.map((_, index) => $(`[data-g="series-${index}"] path`, this.svg));
    this.original = this.paths.map((path) => path && path.getAttribute("d"));
    this.cursor = document.createElementNS(SVG, "line");
    this.cursor.setAttribute("class", "cursor");
    this.cursor.setAttribute("y1", this.box[1]);
    this.cursor.setAttribute("y2", this.box[3]);
    this.cursor.style.display = "none";
    this.svg.append(this.cursor);
    this.smooth = 0;
    this.log = false;
  }
  left(x) {
    return this.box[0] + (x - this.x[0]) / (this.x[1] - this.x[0]) * (this.box[2] - this.box[0]);
  }
  stepAt(clientX) {
    const frame = this.svg.getBoundingClientRect();
    const unit = this.svg.viewBox.baseVal.width / frame.width;
    const share = ((clientX - frame.left) * unit - this.box[0]) / (this.box[2] - this.box[0]);
    return this.x[0] + share * (this.x[1] - this.x[0]);
  }
  values(series) {
    if (!this.smooth) return series.y;
    let mean = 0, weight = 0;
    return series.y.map((value) => {
      mean = this.smooth * mean + (1 - this.smooth) * value;
      weight = this.smooth * weight + (1 - this.smooth);
      return mean / weight;
    });
  }
  draw() {
    const positive = this.chart.series.flatMap((series) => series.y.filter((value) => value > 0));
    const log = this.log && positive.length > 0;
    let low = this.y[0], high = this.y[1];
    if (log) {
      low = Math.log10(Math.min(...positive));
      high = Math.log10(Math.max(...positive));
      const margin = Math.max(0.05 * (high - low), 0.02);
      low -= margin; high += margin;
    }
    const top = (value) => {
      const shown = log ? Math.log10(Math.max(value, 1e-300)) : value;
      return this.box[3] - (Math.max(shown, low - 1) - low) / (high - low) * (this.box[3] - this.box[1]);
    };
    this.chart.series.forEach((series, index) => {
      const path = this.paths[index];
      if (!path) return;
      const values = this.values(series);
      path.setAttribute("d", !log && !this.smooth ? this.original[index]
        : series.x.map((x, i) => `${i ? "L" : "M"}${this.left(x).toFixed(2)} ${top(values[i]).toFixed(2)}`).join(""));
      for (const use of $$(`[data-g="series-${index}"] use`, this.svg)) use.style.display = log || this.smooth ? "none" : "";
    });
    this.axis.style.display = log ? "none" : "";
    $(".log-axis", this.svg)?.remove();
    if (log) this.svg.insertBefore(this.logAxis(low, high, top), this.svg.firstChild);
  }
  logAxis(low, high, top) {
    const group = document.createElementNS(SVG, "g");
    group.setAttribute("class", "log-axis");
    const factors = high - low > 2.5 ? [1] : high - low > 0.8 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9];
    for (let power = Math.floor(low); power <= Math.ceil(high); power++) {
      for (const factor of factors) {
        const value = factor * 10 ** power;
        if (Math.log10(value) < low || Math.log10(value) > high) continue;
        const line = document.createElementNS(SVG, "line"), text = document.createElementNS(SVG, "text");
        for (const [key, at] of [["x1", this.box[0]], ["x2", this.box[2]], ["y1", top(value)], ["y2", top(value)]]) line.setAttribute(key, at);
        text.setAttribute("x", this.box[0] - 4);
        text.setAttribute("y", top(value) + 3);
        text.textContent = value >= 0.001 && value < 1e4 ? String(Number(value.toPrecision(2))) : value.toExponential(0);
        group.append(line, text);
      }
    }
    return group;
  }
  nearest(series, step) {
    let best = 0;
    series.x.forEach((x, index) => { if (Math.abs(x - step) < Math.abs(series.x[best] - step)) best = index; });
    return best;
  }
  show(step) {
    if (step < this.x[0] || step > this.x[1]) { this.hide(); return; }
    this.cursor.setAttribute("x1", this.left(step));
    this.cursor.setAttribute("x2", this.left(step));
    this.cursor.style.display = "";
    const parts = this.chart.series.map((series) => {
      const index = this.nearest(series, step);
      const name = this.chart.series.length > 1 ? `${series.name} ` : "";
      return `${name}${format(this.values(series)[index], 4)}`;
    });
    this.readout.textContent = `step ${Math.round(step)}${epochAt(step)}: ${parts.join(", ")}`;
  }
  hide() {
    this.cursor.style.display = "none";
    this.readout.textContent = "\u00a0";
  }
}

function epochAt(step) {
  const record = report.history.find((line) => line.step >= step);
  return record ? `, epoch ${record.epoch}` : "";
}

function setUpCurves() {
  const plots = $$(".plot[data-chart]").map((node) => new Plot(node));
  if (!plots.length) return;
  const all = (step) => plots.forEach((plot) => plot.show(step));
  const none = () => plots.forEach((plot) => plot.hide());
  const steps = [...new Set(plots.flatMap((plot) => plot.chart.series.flatMap((series) => series.x)))].sort((a, b) => a - b);
  let at = steps.length - 1;
  const snap = (step) => steps.reduce((best, each, index) => Math.abs(each - step) < Math.abs(steps[best] - step) ? index : best, 0);
  for (const plot of plots) {
    plot.node.addEventListener("pointermove", (event) => { at = snap(plot.stepAt(event.clientX)); all(steps[at]); });
    plot.node.addEventListener("pointerleave", none);
    plot.node.addEventListener("focus", () => all(steps[at]));
    plot.node.addEventListener("blur", none);
    plot.node.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: 10, PageDown: -10, Home: -steps.length, End: steps.length }[event.key];
      if (!move) return;
      event.preventDefault();
      at = Math.max(0, Math.min(steps.length - 1, at + move));
      all(steps[at]);
    });
  }
  $("#smoothing").addEventListener("input", (event) => plots.forEach((plot) => { plot.smooth = Number(event.target.value); plot.draw(); }));
  $("#log-scale").addEventListener("change", (event) => plots.forEach((plot) => { plot.log = event.target.checked; plot.draw(); }));
}

/* ------------------------------------------------------------------------------------------------- confusions */

function setUpConfusions() {
  const cells = $$(".matrix td[data-t]");
  if (!cells.length) return;
  const matrix = report.evaluation.matrix, names = report.classes.names;
  const rows = matrix.map((row) => row.reduce((a, b) => a + b, 0));
  const columns = matrix.map((_, index) => matrix.reduce((total, row) => total + row[index], 0));
  const share = (t, p, norm) => matrix[t][p] / Math.max(1, norm === "truth" ? rows[t] : columns[p]);
  const draw = () => {
    const norm = $('input[name="norm"]:checked').value;
    for (const cell of cells) {
      const t = Number(cell.dataset.t), p = Number(cell.dataset.p), value = share(t, p, norm);
      cell.style.setProperty("--share", `${(100 * Math.sqrt(value)).toFixed(1)}%`);
      cell.classList.toggle("strong", value > 0.42);
      cell.textContent = value >= 0.005 ? Math.round(100 * value) : "";
    }
  };
  const readout = $("#matrix-readout");
  for (const cell of cells) {
    const t = Number(cell.dataset.t), p = Number(cell.dataset.p);
    cell.addEventListener("pointerenter", () => {
      const text = t === p ? `${names[t]}: ${matrix[t][p].toLocaleString("en")} pixels right`
        : `${names[t]} taken for ${names[p]}: ${matrix[t][p].toLocaleString("en")} pixels, `
          + `${(100 * share(t, p, "truth")).toFixed(1)} % of ${names[t]}, ${(100 * share(t, p, "predicted")).toFixed(1)} % of what is called ${names[p]}`;
      readout.textContent = text;
    });
    cell.addEventListener("click", () => {
      const found = report.evaluation.confusions.findIndex((each) => each.truth === t && each.predicted === p);
      if (found >= 0) showConfusion(found);
      else if (t === p) showClass(names[t]);
    });
  }
  for (const radio of $$('input[name="norm"]')) radio.addEventListener("change", draw);
  for (const button of $$("[data-confusion]")) button.addEventListener("click", () => showConfusion(Number(button.dataset.confusion)));
  draw();
}

/* ---------------------------------------------------------------------------------------------------- gallery */

const KINDS = ["image", "truth", "prediction", "errors", "confidence"];
const images = new Map((report.evaluation?.images ?? []).map((image) => [image.key, image]));

function picturesOf(key) {
  return report.pictures?.[key] ?? report.small_pictures?.[key];
}

function card(key) {
  const pictures = picturesOf(key);
  const layer = $('input[name="layer"]:checked').value;
  const stack = element("span", { className: "stack" },
    element("img", { src: pictures.image, alt: "" }),
    element("img", { className: "layer", src: pictures[layer] ?? pictures.prediction, alt: "" }));
  const button = element("button", { type: "button", "aria-label": `Enlarge ${key}` }, stack);
  button.addEventListener("click", () => openViewer(key));
  const iou = images.get(key)?.Mean_IoU;
  const name = element("span", { className: "name", title: key }, key);
  return element("figure", { className: "picture" }, button,
    element("figcaption", {}, name, element("span", { className: "num" }, format(iou))));
}

function showPictures(keys, note) {
  const known = keys.filter(picturesOf);
  $("#pictures").replaceChildren(...known.map(card));
  $("#gallery-note").textContent = known.length ? note : `${note} No picture of these is kept.`;
}

function currentPictures() {
  const name = $("#gallery-class").value, group = $("#group").value;
  if (name) {
    const index = report.classes.names.indexOf(name);
    const holds = (key) => images.get(key)?.classes.some((row) => row[0] === index && row[2] > 0);
    const own = report.gallery[`class ${name}`] ?? [];
    const keys = group === "worst" ? own : (report.gallery[group] ?? []).filter(holds);
    showPictures(keys, group === "worst" ? `The images in which ${name} is worst.` : `The ${group} images that have ${name}.`);
  } else {
    showPictures(report.gallery[group] ?? [], { worst: "The images with the lowest mean IoU.", median: "Images near the median.",
      best: "The images with the highest mean IoU.", random: "Images drawn at random, the same ones in every run." }[group]);
  }
}

function jumpToGallery() {
  $("#gallery").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  $("#group").focus({ preventScroll: true });
}

function showClass(name) {
  $("#group").value = "worst";
  $("#gallery-class").value = name;
  currentPictures();
  jumpToGallery();
}

function showConfusion(number) {
  const confusion = report.evaluation.confusions[number], names = report.classes.names;
  $("#gallery-class").value = "";
  showPictures(confusion.images, `The images in which most of ${names[confusion.truth]} is taken for ${names[confusion.predicted]}.`);
  jumpToGallery();
}

function setUpSuspects() {
  for (const button of $$("[data-images]")) {
    button.addEventListener("click", () => {
      $("#gallery-class").value = "";
      showPictures(JSON.parse(button.dataset.images), "A label to look at.");
      jumpToGallery();
    });
  }
}

function setUpGallery() {
  if (!$("#pictures")) return;
  const opacity = () => document.documentElement.style.setProperty("--opacity", Number($("#opacity").value) / 100);
  $("#opacity").addEventListener("input", opacity);
  for (const control of ["#group", "#gallery-class"]) $(control).addEventListener("change", currentPictures);
  for (const radio of $$('input[name="layer"]')) {
    radio.addEventListener("change", () => {
      $("#error-legend").hidden = radio.value !== "errors";
      for (const figure of $$("#pictures .picture")) {
        const pictures = picturesOf($(".name", figure).textContent);
        $(".layer", figure).src = pictures[radio.value] ?? pictures.prediction;
      }
    });
  }
  for (const button of $$("[data-worst]")) button.addEventListener("click", () => showClass(button.dataset.worst));
  opacity();
  currentPictures();
}

/* ----------------------------------------------------------------------------------------------------- viewer */

const view = { zoom: 1, x: 0, y: 0 };

function placePanes() {
  for (const image of $$("#viewer-panes img")) {
    image.style.transform = `translate(${view.x}%, ${view.y}%) scale(${view.zoom})`;
  }
}

function zoomBy(factor) {
  view.zoom = Math.max(1, Math.min(12, view.zoom * factor));
  moveBy(0, 0);
}

function moveBy(x, y) {
  const room = 50 * (view.zoom - 1);
  view.x = Math.max(-room, Math.min(room, view.x + x));
  view.y = Math.max(-room, Math.min(room, view.y + y));
  placePanes();
}

function openViewer(key) {
  const pictures = picturesOf(key);
  Object.assign(view, { zoom: 1, x: 0, y: 0 });
  $("#viewer-title").textContent = `${key}, mean IoU ${format(images.get(key)?.Mean_IoU)}`;
  $("#viewer-panes").replaceChildren(...KINDS.filter((kind) => pictures[kind]).map((kind) =>
    element("figure", {}, element("div", { className: "pane" }, element("img", { src: pictures[kind], alt: `${kind} of ${key}`, draggable: false })),
      element("figcaption", {}, kind))));
  $("#viewer").showModal();
}

function setUpViewer() {
  const viewer = $("#viewer");
  $("#viewer-close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("wheel", (event) => {
    if (!event.target.closest(".pane")) return;
    event.preventDefault();
    zoomBy(event.deltaY < 0 ? 1.2 : 1 / 1.2);
  }, { passive: false });
  let held = null;
  viewer.addEventListener("pointerdown", (event) => { if (event.target.closest(".pane")) held = [event.clientX, event.clientY]; });
  viewer.addEventListener("pointermove", (event) => {
    if (!held) return;
    const pane = $(".pane", viewer).getBoundingClientRect();
    moveBy(100 * (event.clientX - held[0]) / pane.width, 100 * (event.clientY - held[1]) / pane.height);
    held = [event.clientX, event.clientY];
  });
  addEventListener("pointerup", () => { held = null; });
  viewer.addEventListener("keydown", (event) => {
    const act = { "+": () => zoomBy(1.25), "=": () => zoomBy(1.25), "-": () => zoomBy(0.8), ArrowLeft: () => moveBy(8, 0),
      ArrowRight: () => moveBy(-8, 0), ArrowUp: () => moveBy(0, 8), ArrowDown: () => moveBy(0, -8) }[event.key];
    if (act) { event.preventDefault(); act(); }
  });
}

/* Another page of ours, the index, asks a report in a frame for what it holds. */
addEventListener("message", (event) => {
  if (event.data?.segwright === "send" && event.source === parent && parent !== window) {
    parent.postMessage({ segwright: "report", id: event.data.id, report }, "*");
  }
});

function setUpCrops() {
  $("#crop-opacity")?.addEventListener("input", (event) => {
    $(".crops").style.setProperty("--opacity", Number(event.target.value) / 100);
  });
}

setUpTheme();
setUpSorting();
setUpCopying();
setUpCurves();
setUpConfusions();
setUpGallery();
setUpSuspects();
setUpViewer();
setUpCrops();
