/* The index: search, picks, the comparison of runs from their own reports, and what changed keys do to the mean IoU. */
const { runs, changed } = readBlock("segwright-index");
const RESAMPLES = 1000;
const reports = new Map();

/* ------------------------------------------------------------------------------------------- fetching reports */

function loadReport(index) {
  if (!reports.has(index)) {
    reports.set(index, new Promise((resolve, reject) => {
      const frame = element("iframe", { className: "loader", title: "report", src: runs[index].href });
      frame.setAttribute("aria-hidden", "true");
      const timer = setTimeout(() => reject(new Error(`${runs[index].href} does not answer`)), 8000);
      addEventListener("message", (event) => {
        if (event.source !== frame.contentWindow || event.data?.segwright !== "report") return;
        clearTimeout(timer);
        frame.remove();
        resolve(event.data.report);
      });
      frame.addEventListener("load", () => frame.contentWindow.postMessage({ segwright: "send", id: index }, "*"));
      document.body.append(frame);
    }));
  }
  return reports.get(index);
}

/* -------------------------------------------------------------------------------------------------- statistics */

function randomNumbers(seed) {  /* mulberry32: the same draws every time */
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

function countsOf(images, classes) {
  return images.map((image) => {
    const counts = new Float64Array(3 * classes);
    for (const [index, hit, labelled, predicted] of image.classes) counts.set([hit, labelled, predicted], 3 * index);
    return counts;
  });
}

function iouOf(sums) {
  const found = [];
  for (let at = 0; at < sums.length; at += 3) {
    const union = sums[at + 1] + sums[at + 2] - sums[at];
    found.push(union > 0 ? sums[at] / union : NaN);
  }
  return found;
}

function meanOf(ious, ignored) {
  const values = ious.filter((value, index) => !Number.isNaN(value) && !ignored.includes(index));
  return values.reduce((a, b) => a + b, 0) / values.length;
}

function interval(draws) {
  const sorted = draws.filter((value) => !Number.isNaN(value)).sort((a, b) => a - b);
  if (!sorted.length) return [null, null];
  const at = (share) => {
    const place = share * (sorted.length - 1), low = Math.floor(place);
    return sorted[low] + (place - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
  };
  return [at(0.025), at(0.975)];
}

function total(counts, chosen) {
  const sums = new Float64Array(counts[0].length);
  for (const image of chosen) for (let i = 0; i < sums.length; i++) sums[i] += counts[image][i];
  return sums;
}

function pairedBootstrap(a, b, ignored) {
  const images = a.length, random = randomNumbers(1), every = [...a.keys()];
  const oldIou = iouOf(total(a, every)), newIou = iouOf(total(b, every));
  const means = [], classes = oldIou.map(() => []);
  for (let draw = 0; draw < RESAMPLES; draw++) {
    const chosen = Array.from({ length: images }, () => Math.floor(random() * images));
    const first = iouOf(total(a, chosen)), second = iouOf(total(b, chosen));
    means.push(meanOf(second, ignored) - meanOf(first, ignored));
    second.forEach((value, index) => classes[index].push(value - first[index]));
  }
  return { oldIou, newIou, oldMean: meanOf(oldIou, ignored), newMean: meanOf(newIou, ignored),
    mean: interval(means), classes: classes.map(interval) };
}

function signTest(differences) {
  const better = differences.filter((value) => value > 0).length, worse = differences.filter((value) => value < 0).length;
  const n = better + worse, fewer = Math.min(better, worse);
  let log = -n * Math.LN2, tail = Math.exp(log);
  for (let k = 1; k <= fewer; k++) { log += Math.log((n - k + 1) / k); tail += Math.exp(log); }
  return { better, worse, p: n ? Math.min(1, 2 * tail) : 1 };
}

/* -------------------------------------------------------------------------------------------------- comparison */

const signed = (value) => value === null || Number.isNaN(value) ? "–" : `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;
const label = (index) => `${runs[index].name} ${runs[index].run}`;

function compareRow(name, color, old, now, bounds, signs) {
  const clear = bounds[0] !== null && (bounds[0] > 0 || bounds[1] < 0);
  const row = element("tr", {}, element("th", { scope: "row" }));
  if (color) row.cells[0].append(element("span", { className: "chip", style: `background:${color}` }));
  row.cells[0].append(name);
  const cell = (text, value) => element("td", { className: "num", "data-v": value ?? -9 }, text);
  const gain = now - old;
  const strong = element("td", { className: "num", "data-v": Number.isNaN(gain) ? -9 : gain });
  strong.append(clear ? element("b", {}, signed(gain)) : signed(gain));
  row.append(cell(format(Number.isNaN(old) ? null : old), old), cell(format(Number.isNaN(now) ? null : now), now), strong,
    cell(bounds[0] === null ? "–" : `${signed(bounds[0])} to ${signed(bounds[1])}`, bounds[0]),
    cell(`${signs.better} / ${signs.worse}`, signs.better - signs.worse), cell(signs.p < 0.001 ? "< 0.001" : signs.p.toFixed(3), signs.p));
  return row;
}

function compareTable(first, second, found, a, b) {
  const names = first.classes.names, ignored = first.classes.ignored;
  const perImage = a.map((counts, image) => [iouOf(counts), iouOf(b[image])]);
  const body = element("tbody");
  names.forEach((name, index) => body.append(compareRow(name, first.classes.colors[index], found.oldIou[index], found.newIou[index],
    found.classes[index], signTest(perImage.map(([old, now]) => now[index] - old[index])))));
  const means = perImage.map(([old, now]) => meanOf(now, ignored) - meanOf(old, ignored));
  body.prepend(compareRow("mean IoU", null, found.oldMean, found.newMean, found.mean, signTest(means)));
  const head = element("tr");
  for (const [text, kind] of [["class", ""], ["A", "num"], ["B", "num"], ["B − A", "num"], ["95 % interval", "num"],
    ["images B better / worse", "num"], ["sign test p", "num"]]) {
    head.append(element("th", { scope: "col", className: kind, "aria-sort": "none" }, element("button", { type: "button" }, text)));
  }
  const made = element("table", { className: "sortable", id: "comparison" }, element("thead", {}, head), body);
  return { scroll: element("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Comparison by class" }, made), means };
}

function sideBySide(first, second, order, title) {
  const holder = element("div", {});
  for (const { key, gain } of order) {
    const one = first.small_pictures[key], two = second.small_pictures[key];
    if (!one || !two) continue;
    const panes = [["image", one.image], ["truth", one.truth], ["A", one.prediction], ["B", two.prediction]];
    holder.append(element("p", { className: "small" }, `${key}: B − A ${signed(gain)}`),
      element("div", { className: "side" }, ...panes.map(([name, source]) => element("figure", { className: "picture" },
        element("span", { className: "stack" }, element("img", { src: source, alt: `${name} of ${key}` })), element("figcaption", {}, name)))));
    if (holder.children.length >= 8) break;
  }
  return holder.children.length ? [element("h3", {}, title), holder] : [];
}

function differenceTable(first, second) {
  const a = runs[first].config, b = runs[second].config;
  const keys = [...new Set([...Object.keys(a), ...Object.keys(b)])].filter((key) => JSON.stringify(a[key]) !== JSON.stringify(b[key]));
  if (!keys.length) return element("p", {}, "The configs are the same.");
  const code = (value) => element("td", {}, element("code", {}, value === undefined ? "–" : JSON.stringify(value)));
  const body = element("tbody", {}, ...keys.map((key) => element("tr", {}, element("th", { scope: "row" }, element("code", {}, key)), code(a[key]), code(b[key]))));
  const head = element("thead", {}, element("tr", {}, ...["key", "A", "B"].map((text) => element("th", { scope: "col" }, text))));
  return element("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Config differences" }, element("table", {}, head, body));
}

function make(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function overlay(title, series) {
  const known = series.filter((each) => each.x.length > 1);
  if (!known.length) return [];
  const width = 460, height = 230, box = [44, 10, width - 10, height - 30];
  const xs = known.flatMap((each) => each.x), ys = known.flatMap((each) => each.y);
  const range = (values) => [Math.min(...values), Math.max(...values) || 1];
  const [left, right] = range(xs), [low, high] = range(ys);
  const x = (value) => box[0] + (value - left) / (right - left || 1) * (box[2] - box[0]);
  const y = (value) => box[3] - (value - low) / (high - low || 1) * (box[3] - box[1]);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  for (let tick = 0; tick <= 4; tick++) {
    const value = low + tick / 4 * (high - low), step = left + tick / 4 * (right - left);
    svg.append(make("line", { x1: box[0], x2: box[2], y1: y(value), y2: y(value), style: "stroke:var(--line)" }),
      make("text", { x: box[0] - 6, y: y(value) + 4, style: "fill:var(--muted);font-size:11px;text-anchor:end" }, Number(value.toPrecision(3))),
      make("text", { x: x(step), y: height - 12, style: "fill:var(--muted);font-size:11px;text-anchor:middle" }, Math.round(step)));
  }
  known.forEach((each) => svg.append(make("path", { d: each.x.map((at, i) => `${i ? "L" : "M"}${x(at).toFixed(1)} ${y(each.y[i]).toFixed(1)}`).join(""),
    style: `fill:none;stroke:var(--c${each.color});stroke-width:2${each.dashed ? ";stroke-dasharray:5 4" : ""}` })));
  const keys = known.map((each) => element("span", { className: `key c${each.color}` }, each.name));
  return [element("figure", { className: "chart" }, element("figcaption", {}, element("b", {}, title), ...keys), element("div", { className: "plot" }, svg))];
}

function overlays(loaded) {
  const curve = (key) => loaded.map((report, index) => {
    const records = report.history.filter((record) => key in record);
    return { name: "AB"[index] ?? String(index + 1), color: index % 6, x: records.map((record) => record.step), y: records.map((record) => record[key]) };
  });
  return element("div", { className: "charts" }, ...overlay("Mean IoU in validation", curve("val/Mean_IoU")), ...overlay("Training loss", curve("train/loss")));
}

async function compareTwo(first, second, target) {
  target.replaceChildren(element("h2", {}, "Comparison"), element("p", { className: "muted" }, "Reading the two reports …"));
  const [one, two] = await Promise.all([loadReport(first), loadReport(second)]);
  const heading = [element("h2", {}, "Comparison"), element("p", {}, `A: ${label(first)}`), element("p", {}, `B: ${label(second)}`)];
  if (runs[first].stamp !== runs[second].stamp) {
    target.replaceChildren(...heading, element("p", { className: "warn" }, "These were measured in different ways, on other images or on other classes; their figures cannot be compared."),
      differenceTable(first, second), overlays([one, two]));
    return;
  }
  if (!one.evaluation || !two.evaluation) {
    target.replaceChildren(...heading, element("p", {}, "One of the two is still in training."), overlays([one, two]), differenceTable(first, second));
    return;
  }
  const size = one.classes.names.length, byKey = new Map(two.evaluation.images.map((image) => [image.key, image]));
  const a = countsOf(one.evaluation.images, size), b = countsOf(one.evaluation.images.map((image) => byKey.get(image.key)), size);
  const found = pairedBootstrap(a, b, one.classes.ignored), gain = found.newMean - found.oldMean;
  const { scroll, means } = compareTable(one, two, found, a, b);
  const words = found.mean[0] > 0 ? "B is better" : found.mean[1] < 0 ? "A is better" : "No more than noise";
  const gains = one.evaluation.images.map((image, index) => ({ key: image.key, gain: means[index] })).filter((each) => !Number.isNaN(each.gain));
  const up = gains.filter((each) => each.gain > 0).sort((x, y) => y.gain - x.gain), down = gains.filter((each) => each.gain < 0).sort((x, y) => x.gain - y.gain);
  target.replaceChildren(...heading,
    element("p", {}, element("b", {}, `${words}: ${signed(gain)}`), ` mean IoU, 95 % interval ${signed(found.mean[0])} to ${signed(found.mean[1])} over ${a.length} images.`),
    element("p", { className: "muted small" }, "Paired bootstrap over images. How much trainings of other seeds differ is not in it: pick those to see."),
    scroll, element("h3", {}, "What differs in the configs"), differenceTable(first, second),
    element("h3", {}, "Curves"), overlays([one, two]),
    ...sideBySide(one, two, up, "Where B beats A most"), ...sideBySide(one, two, down, "Where A beats B most"));
  setUpSorting(scroll);
}

// The 97.5 % point of Student's t, as engine/spread.py has it.
function quantile(degrees) {
  const few = [12.706, 4.303, 3.182, 2.776, 2.571];
  return few[degrees - 1] ?? 1.959964 + 2.3723 / degrees + 2.8225 / degrees ** 2 + 2.5558 / degrees ** 3;
}

async function showNoise(chosen, target) {
  const values = chosen.map((index) => runs[index].Mean_IoU).filter((value) => value !== null);
  const mean = values.reduce((x, y) => x + y, 0) / values.length;
  const deviation = Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (values.length - 1));
  const stamps = new Set(chosen.map((index) => runs[index].stamp));
  const keys = new Set(chosen.flatMap((index) => Object.keys(runs[index].config)));
  const differing = [...keys].filter((key) => new Set(chosen.map((index) => JSON.stringify(runs[index].config[key]))).size > 1 && !["seed", "name", "trainer.save_dir"].includes(key));
  const list = element("ul", {}, ...chosen.map((index) => element("li", {}, `${label(index)}: ${format(runs[index].Mean_IoU)}, seed ${runs[index].seed ?? "–"}`)));
  const parts = [element("h2", {}, `${chosen.length} runs`)];
  if (stamps.size > 1) parts.push(element("p", { className: "warn" }, "They were measured in different ways; a mean of them would mean nothing."));
  else {
    parts.push(element("p", {}, element("b", {}, `${mean.toFixed(3)} ± ${deviation.toFixed(3)}`), " mean IoU (mean and standard deviation)."),
      element("p", {}, `Noise floor: two single runs have to differ by more than ${(quantile(values.length - 1) * Math.SQRT2 * deviation).toFixed(3)} before it says anything.`));
    if (differing.length) parts.push(element("p", { className: "warn" }, `They differ in more than the seed: ${differing.slice(0, 6).join(", ")}. So this spread is not noise alone.`));
  }
  target.replaceChildren(...parts, list);
  const loaded = await Promise.all(chosen.map(loadReport));
  target.append(overlays(loaded));
}

/* ------------------------------------------------------------------------------------------ parallel coordinates */

const PARALLEL = { height: 250, top: 46, bottom: 226, side: 74, step: 128, letters: 19 };

function shortName(key, keys) {  /* as few last parts of a dotted key as tell it from the others */
  const parts = key.split(".");
  for (let from = parts.length - 1; from > 0; from--) {
    const name = parts.slice(from).join(".");
    if (keys.filter((other) => other === name || other.endsWith(`.${name}`)).length === 1) return name;
  }
  return key;
}

const cut = (text, most) => text.length <= most ? text : `…${text.slice(1 - most)}`;

function numberAxis(values) {  /* linear, or logarithmic where it spans more than a factor of 20 */
  const known = values.filter((value) => typeof value === "number");
  const low = Math.min(...known), high = Math.max(...known), log = low > 0 && high / low > 20;
  const scale = log ? Math.log : (value) => value;
  const share = (value) => high === low ? 0.5 : (scale(value) - scale(low)) / (scale(high) - scale(low));
  const ticks = [...new Set(known)].sort((a, b) => a - b);
  return { place: share, ticks: ticks.map((value) => [share(value), Number(value.toPrecision(4)).toString()]) };
}

function wordAxis(values) {
  const texts = values.map((value) => value === undefined || value === null ? "–" : typeof value === "string" ? value : JSON.stringify(value));
  const all = [...new Set(texts)].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const share = (text) => all.length === 1 ? 0.5 : all.indexOf(text) / (all.length - 1);
  return { place: (value) => share(texts[values.indexOf(value)]), ticks: all.map((text) => [share(text), cut(text, 13)]) };
}

function axisOf(values) {
  return values.every((value) => typeof value === "number") ? numberAxis(values) : wordAxis(values);
}

function sparse(ticks) {  /* both ends, and between them what has room; shares grow */
  const found = [], last = ticks[ticks.length - 1];
  for (const tick of ticks) {
    const room = 14 / (PARALLEL.bottom - PARALLEL.top);
    if (tick === last || ((!found.length || tick[0] - found[found.length - 1][0] >= room) && last[0] - tick[0] >= room)) found.push(tick);
  }
  return found;
}

function drawAxis(svg, x, name, full, ticks, last) {
  const { top, bottom, letters } = PARALLEL;
  svg.append(make("line", { x1: x, x2: x, y1: top, y2: bottom, class: "axis" }));
  const title = make("text", { x, y: 20, class: "axis-title" }, cut(name, letters));
  title.append(make("title", {}, full));
  svg.append(title);
  for (const [share, text] of sparse(ticks)) {
    svg.append(make("text", { x: last ? x + 6 : x - 6, y: bottom - share * (bottom - top) + 4, class: last ? "last" : "" }, text));
  }
}

function drawParallel() {
  const holder = $("#parallel");
  if (!holder) return;
  const shown = $$("#runs tbody tr").filter((row) => !row.hidden).map((row) => Number(row.dataset.run)).filter((index) => runs[index].Mean_IoU !== null);
  const keys = changed.filter((key) => new Set(shown.map((index) => JSON.stringify(runs[index].config[key]))).size > 1);
  if (shown.length < 2 || !keys.length) {
    holder.replaceChildren(element("p", { className: "muted small" }, "The runs shown do not differ in their configs."));
    return;
  }
  const columns = keys.map((key) => ({ name: shortName(key, keys), full: key, values: shown.map((index) => runs[index].config[key]) }));
  const means = shown.map((index) => Number(runs[index].Mean_IoU.toFixed(3)));
  columns.push({ name: "mean IoU", full: "mean IoU", values: means });
  const { height, top, bottom, side, step } = PARALLEL;
  const width = Math.max(holder.clientWidth, 2 * side + step * (columns.length - 1));
  const at = (number) => side + number * (width - 2 * side) / (columns.length - 1);
  const svg = make("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${shown.length} runs by ${keys.join(", ")} and mean IoU; the table has the values` });
  const axes = columns.map((column) => axisOf(column.values));
  const lines = make("g", {});
  shown.forEach((index, number) => {
    const d = columns.map((column, place) => {
      const y = bottom - axes[place].place(column.values[number]) * (bottom - top);
      return `${place ? "L" : "M"}${at(place).toFixed(1)} ${y.toFixed(1)}`;
    }).join("");
    const ranked = !$(`#runs tr[data-run="${index}"]`).classList.contains("grayed");
    const group = make("g", { class: ranked ? "run-line" : "run-line unranked", "data-line": index });
    group.append(make("path", { d, class: "target" }), make("path", { d }));
    group.addEventListener("pointerenter", () => highlight(index));
    group.addEventListener("pointerleave", () => highlight(null));
    lines.append(group);
  });
  svg.append(lines);
  columns.forEach((column, place) => drawAxis(svg, at(place), column.name, column.full, axes[place].ticks, place === columns.length - 1));
  holder.replaceChildren(svg);
}

function highlight(index) {
  for (const each of $$("#parallel .run-line")) each.classList.toggle("highlit", Number(each.dataset.line) === index);
  for (const row of $$("tr[data-run]")) row.classList.toggle("highlit", Number(row.dataset.run) === index);
  const line = $(`#parallel [data-line="${index}"]`);
  if (line && line !== line.parentNode.lastChild) line.parentNode.append(line);  /* on top of the others */
  const readout = $("#parallel-readout");
  if (readout) readout.textContent = index === null ? "\u00a0" : `${label(index)}: ${format(runs[index].Mean_IoU)}`;
}

function setUpParallel() {
  drawParallel();
  addEventListener("resize", drawParallel);
  for (const row of $$("tr[data-run]")) {
    const index = Number(row.dataset.run);
    for (const name of ["pointerenter", "focusin"]) row.addEventListener(name, () => highlight(index));
    for (const name of ["pointerleave", "focusout"]) row.addEventListener(name, () => highlight(null));
  }
}

/* ------------------------------------------------------------------------------------------------------- set up */

let turn = 0;

async function showPicked() {
  const mine = ++turn;
  const chosen = $$("[data-pick]:checked").map((box) => Number(box.dataset.pick)).sort((x, y) => runs[x].run < runs[y].run ? -1 : 1);
  const target = element("div", {});
  $("#picked").replaceChildren(target);
  try {
    if (chosen.length === 2) await compareTwo(chosen[0], chosen[1], target);
    else if (chosen.length > 2) await showNoise(chosen, target);
  } catch (error) {
    if (mine === turn) target.replaceChildren(element("p", { className: "warn" }, `A report could not be read: ${error.message}. Write it anew by report.py.`));
  }
}

function setUpSearch() {
  $("#search").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of $$("#runs tbody tr")) {
      const run = runs[Number(row.dataset.run)];
      const text = `${row.textContent} ${Object.entries(run.config).map(([key, value]) => `${key}=${JSON.stringify(value)}`).join(" ")}`.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    drawParallel();
  });
}

function setUpScatters() {
  for (const plot of $$(".scatter")) {
    const readout = plot.parentNode.querySelector(".readout");
    for (const point of $$('[data-g^="run-"]', plot)) {
      const index = Number(point.dataset.g.slice(4));
      point.addEventListener("pointerenter", () => { readout.textContent = `${label(index)}: ${format(runs[index].Mean_IoU)}`; });
      point.addEventListener("click", () => { location.href = runs[index].href; });
      point.style.cursor = "pointer";
    }
  }
}

setUpTheme();
setUpSorting();
setUpSearch();
setUpScatters();
setUpParallel();
for (const box of $$("[data-pick]")) box.addEventListener("change", showPicked);
