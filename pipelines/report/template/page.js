"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const BINS = 100;
// the classes of the rows, the most frequent first, then those of another run or of annotations only
const ALL = [...data.order, ...data.classes.keys()].filter((number, place, all) => all.indexOf(number) === place);
const ROLES = ["found", "truth", "appeared", "vanished", "moved", "false", "missed", "before"];
const DASHES = { truth: "6 4", missed: "6 4", vanished: "2 4", before: "2 4" };
const state = { threshold: data.threshold, hidden: new Set(), labels: true };
const whole = new Intl.NumberFormat("en-US");
const byId = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function drawn(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function colour(number) {
  const hue = Math.round(((number * 0.61803398875) % 1) * 360);
  return `hsl(${hue} 85% ${[62, 72, 54][number % 3]}%)`;
}

const firstBin = () => Math.round(state.threshold * BINS);
const sumFrom = (bins, first) => bins.slice(first).reduce((sum, count) => sum + count, 0);
const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;

// Whether a box is shown. The annotations have no score, so only the class filter applies to them.
function isShown(box) {
  return !state.hidden.has(box[0]) && (isAnnotated(box) || box[1] >= state.threshold);
}

const roleOf = (box) => ROLES[box[6] || 0];
const isAnnotated = (box) => box[1] === null;

// Changes and mistakes. Where a picture has some, its other boxes are drawn faintly, but for those below the threshold
// of the comparison, which were not compared.
const isMarked = (box) => (box[6] || 0) > 1;
const isFaint = (box) => !isMarked(box) && (isAnnotated(box) || box[1] >= data.threshold);

// Says how many boxes reach the threshold if not all of them are drawn: a picture has at most 100.
function notDrawn(item) {
  const more = (item.more || []).reduce((sum, [bin, count]) => sum + (bin >= firstBin() ? count : 0), 0);
  if (!more) return "";
  const drawn = item.boxes.filter((box) => !isAnnotated(box) && roleOf(box) !== "before" && box[1] >= state.threshold);
  const marked = drawn.filter(isMarked);
  if (!marked.length) return ` (the ${drawn.length} best of ${drawn.length + more} boxes)`;
  return ` (${drawn.length} of ${drawn.length + more} boxes, ${roleOf(marked[0]) === "false" ? "false" : "changed"} ones first)`;
}

function describe(item) {
  const shown = item.boxes.filter(isShown);
  const counts = new Map();
  for (const box of shown) {
    const role = roleOf(box);
    if (role === "before") continue; // it is one object with the box that moved
    const name = data.classes[box[0]] + (role === "found" ? "" : ` (${role})`);
    counts.set(name, (counts.get(name) || 0) + 1);
  }
  const listed = [...counts].sort((one, other) => other[1] - one[1]).map(([name, count]) => `${count} ${name}`);
  return (listed.length ? listed.join(", ") : "no box at this threshold") + notDrawn(item);
}

// The labels of some boxes, the best first. Those are left out that would cover an earlier one at each of their places,
// or with which labels would cover more than a quarter of the picture.
function labels(boxes, picture, unit) {
  const parts = [];
  const taken = [];
  let left = (picture.width * picture.height) / 4;
  for (const box of boxes) {
    const [number, score, x1, y1, , y2] = box;
    const words = `${isMarked(box) ? roleOf(box) + " " : ""}${data.classes[number]}${score === null ? "" : " " + score.toFixed(2)}`;
    const high = 15 * unit;
    const wide = (words.length * 6.6 + 6) * unit;
    const x = Math.max(0, Math.min(x1, picture.width - wide));
    const above = y1 >= high ? y1 - high : y1;
    const places = isAnnotated(box) ? [y2] : [above, y2, y1]; // annotations have theirs below
    const inside = places.map((y) => Math.max(0, Math.min(y, picture.height - high)));
    const isFree = (y) => !taken.some((one) => x < one.x + one.wide && one.x < x + wide && y < one.y + high && one.y < y + high);
    const y = inside.find(isFree);
    if (y === undefined || left < wide * high) continue;
    left -= wide * high;
    taken.push({ x, y, wide });
    parts.push(drawn("rect", { x, y, width: wide, height: high, class: "label", style: `fill:${isAnnotated(box) ? "#fff" : colour(number)}` }));
    const style = `font:${11 * unit}px ui-monospace,monospace;fill:#000`;
    parts.push(drawn("text", { x: x + 3 * unit, y: y + 11 * unit, style }, words));
  }
  return parts;
}

// The size of an element on the screen. Reading it after a change makes the browser lay out the page again.
const sizeOf = (holder) => ({ width: holder.clientWidth || 300, height: holder.clientHeight || 225 });

// Draws the boxes of one picture, which has this size on the screen; the best lies on top.
function drawBoxes(svg, item, size) {
  const picture = data.pictures[item.picture];
  const shown = item.boxes.filter(isShown);
  // pixels of the picture for a pixel of the screen: the picture fits into its holder
  const unit = Math.max(picture.width / size.width, picture.height / size.height);
  const parts = [];
  const hasMarks = item.boxes.some(isMarked);
  for (const box of [...shown].reverse()) {
    const [number, , x1, y1, x2, y2] = box;
    const place = { x: x1, y: y1, width: Math.max(x2 - x1, 1), height: Math.max(y2 - y1, 1) };
    const line = { ...place, "stroke-dasharray": DASHES[roleOf(box)] || "none", opacity: hasMarks && isFaint(box) ? 0.4 : 1 };
    parts.push(drawn("rect", { ...line, stroke: "#000b", "stroke-width": 4 }));
    const stroke = isAnnotated(box) ? "#fff" : colour(number);
    parts.push(drawn("rect", { ...line, stroke, "stroke-width": 2, class: "box", "data-class": number, "data-role": roleOf(box) }));
  }
  const labelled = shown.filter((box) => !hasMarks || (!isFaint(box) && roleOf(box) !== "before"));
  labelled.sort((one, other) => isMarked(other) - isMarked(one)); // these get the free places first
  if (state.labels) parts.push(...labels(labelled, picture, unit));
  svg.replaceChildren(...parts);
}

function drawing(item) {
  const picture = data.pictures[item.picture];
  const holder = element("span", { class: "drawing" });
  if (picture.source === null) {
    holder.append(element("span", { class: "gone", style: "display:block;line-height:1.5" }, picture.problem));
    return { holder, svg: null };
  }
  const size = { width: picture.width, height: picture.height };
  const image = element("img", { alt: "", src: picture.source, ...size });
  const svg = drawn("svg", { viewBox: `0 0 ${picture.width} ${picture.height}`, "aria-hidden": "true" });
  holder.append(image, svg);
  return { holder, svg };
}

const views = [];

// A picture's file with its last two folders: cameras give the same names to the files of all folders.
function shortName(uri) {
  return uri.replace(/^[a-z0-9+.-]+:\/+/i, "").split("/").slice(-3).join("/");
}

function buildGallery(place, gallery) {
  const enlargeable = gallery.items.filter((item) => data.pictures[item.picture].source !== null);
  for (const item of gallery.items) {
    const picture = data.pictures[item.picture];
    const { holder, svg } = drawing(item);
    const words = element("span", {});
    const name = shortName(picture.uri);
    // a line may end after a slash
    const title = element("strong", { title: picture.uri }, ...name.split(/(?<=\/)/).flatMap((part) => [part, element("wbr")]));
    const caption = element("figcaption", {}, title, element("br"), words);
    if (item.note) caption.append(element("br"), element("span", { class: "soft" }, item.note));
    let button = null;
    if (svg) {
      button = element("button", { type: "button" });
      holder.append(button);
      button.addEventListener("click", () => enlarge(enlargeable, enlargeable.indexOf(item)));
    }
    const figure = element("figure", { class: "picture" }, holder, caption);
    place.append(figure);
    const view = { item, svg, holder, button, words, name, isNear: false, isStale: true };
    views.push(view);
    if (svg) {
      viewOf.set(holder, view);
      nearby.observe(holder);
    }
  }
}

// Pictures in the window or at most one window away from it: only these are drawn, the others when they come near.
const viewOf = new Map();
const nearby = new IntersectionObserver((entries) => {
  for (const entry of entries) viewOf.get(entry.target).isNear = entry.isIntersecting;
  drawStale((view) => view.isNear);
}, { rootMargin: "100% 0px" });

function drawStale(isWanted) {
  const wanted = views.filter((view) => view.svg !== null && view.isStale && isWanted(view));
  const sizes = wanted.map((view) => sizeOf(view.holder)); // all sizes are read before anything is written
  wanted.forEach((view, place) => {
    drawBoxes(view.svg, view.item, sizes[place]);
    view.isStale = false;
  });
}

function drawViews() {
  for (const view of views) view.isStale = true;
  drawStale((view) => view.isNear);
}

function writeCaptions() {
  for (const view of views) {
    const text = describe(view.item);
    if (view.words.textContent === text) continue;
    view.words.textContent = text;
    if (view.button) view.button.setAttribute("aria-label", `Enlarge ${view.name}: ${text}`);
  }
}

let step = () => {}; // shows the picture so many places further in the gallery, the first after the last

function enlarge(items, place) {
  const item = items[place];
  const picture = data.pictures[item.picture];
  const dialog = byId("large");
  step = (places) => enlarge(items, (place + places + items.length) % items.length);
  byId("steps").hidden = items.length === 1;
  byId("large-place").textContent = `${place + 1} of ${items.length}: ${describe(item)}`;
  const { holder, svg } = drawing(item);
  dialog.style.setProperty("--ratio", picture.width / picture.height);
  byId("large-title").textContent = picture.uri;
  byId("large-picture").replaceChildren(holder);
  const rows = item.boxes.filter(isShown).map((box) => {
    const cells = [roleOf(box), data.classes[box[0]], box[1] === null ? "" : box[1].toFixed(4)];
    return element("tr", {}, ...cells.map((text) => element("td", {}, text)), element("td", {}, box.slice(2, 6).map((side) => side.toFixed(1)).join(", ")));
  });
  byId("large-boxes").replaceChildren(...rows);
  if (!dialog.open) dialog.showModal();
  drawBoxes(svg, item, sizeOf(holder));
}

function numbersTable(names, rows) {
  const head = element("tr", {}, ...names.map((name) => element("th", { scope: "col" }, name)));
  const lines = rows.map((row) => element("tr", {}, ...row.map((cell) => element("td", {}, cell))));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...lines));
}

// A chart of columns with a sentence for screen readers; the numbers are in the table below it.
function columns(id, values, sentence, isBelow = () => false) {
  // tables with all scores have most of them near 0: such columns are cut off at the top
  const most = Math.max(1, ...values.filter((_, index) => !isBelow(index)));
  const place = byId(id);
  const bars = values.map((value, index) => {
    const bar = element("i", { style: `height:${Math.min(100, (100 * value) / most)}%`, title: whole.format(value) });
    if (isBelow(index)) bar.className = "below";
    return bar;
  });
  place.replaceChildren(...bars);
  place.setAttribute("aria-label", sentence);
}

function drawCharts() {
  if (!data.figures) return; // a page whose charts do not follow the controls
  const first = firstBin();
  const figures = data.figures;
  const classes = data.order.map((number) => [number, sumFrom(figures.classes[number], first)]);
  const most = Math.max(1, ...classes.map((pair) => pair[1]));
  for (const [number, count] of classes) {
    byId(`count-${number}`).textContent = whole.format(count);
    byId(`bar-${number}`).style.width = `${(100 * count) / most}%`;
  }
  const visible = data.order.filter((number) => !state.hidden.has(number));
  const scores = Array(BINS).fill(0);
  for (const number of visible) figures.classes[number].forEach((count, bin) => { scores[bin] += count; });
  const kept = sumFrom(scores, first);
  byId("shown").textContent = whole.format(kept);
  announceSoon(`${whole.format(kept)} detections`);
  columns("scores", scores, `${whole.format(kept)} detections with a score of ${state.threshold.toFixed(2)} or more, ${whole.format(sumFrom(scores, 0) - kept)} below.`, (bin) => bin < first);
  const perImage = figures.boxes_per_image[Math.min(first, BINS - 1)];
  const images = Math.max(1, sumFrom(perImage, 0));
  columns("boxes-per-image", perImage, `${percent(perImage[0] / images)} of the images have no box at this threshold.`);
  byId("empty").textContent = percent(perImage[0] / images);
  byId("boxes-per-image-numbers").replaceChildren(numbersTable(["boxes", "images"], perImage.map((count, boxes) => [boxes === perImage.length - 1 ? `${boxes} or more` : `${boxes}`, whole.format(count)])));
  const sizes = figures.sizes.map((bins) => sumFrom(bins, first));
  const total = Math.max(1, sumFrom(sizes, 0));
  columns("sizes", sizes, `${percent(sizes.slice(0, 3).reduce((a, b) => a + b, 0) / total)} of the boxes are narrower than 8 % of the picture's side.`);
  byId("sizes-numbers").replaceChildren(numbersTable(["side of the box, share of the picture's", "boxes"], sizes.map((count, index) => [`${percent(figures.size_edges[index])} to ${percent(figures.size_edges[index + 1])}`, whole.format(count)])));
  const positions = figures.positions.map((bins) => sumFrom(bins, first));
  const highest = Math.max(1, ...positions);
  const cells = positions.map((count) => element("i", { style: `--share:${count / highest}`, title: whole.format(count) }));
  byId("positions").replaceChildren(...cells);
  const [lines, across] = figures.grid;
  const upper = positions.slice(0, across * Math.floor(lines / 2)).reduce((a, b) => a + b, 0);
  byId("positions").setAttribute("aria-label", `Centres of boxes: ${percent(upper / Math.max(1, sumFrom(positions, 0)))} in the upper ${Math.floor(lines / 2)} of ${lines} rows.`);
}

function redraw() {
  byId("threshold-value").textContent = state.threshold.toFixed(2);
  drawViews();
  drawCharts();
  writeCaptions();
}

// Draws once before the next frame, however many events come until then.
let waiting = 0;
function redrawSoon() {
  waiting ||= requestAnimationFrame(() => { waiting = 0; redraw(); });
}

// Reads what the controls show: browsers keep it when one goes back to the page.
function readControls() {
  state.threshold = Number(byId("threshold").value);
  state.labels = byId("labels").checked;
  const boxes = [...byId("classes").querySelectorAll("input")];
  state.hidden = new Set(boxes.filter((box) => !box.checked).map((box) => Number(box.value)));
}

function controlsChanged() {
  readControls();
  redrawSoon();
}

function buildFilters() {
  const place = byId("classes");
  for (const number of ALL) {
    const box = element("input", { type: "checkbox", value: number });
    box.checked = true;
    box.addEventListener("change", controlsChanged);
    const dot = element("b", { style: `background:${colour(number)}` });
    place.append(element("label", {}, box, dot, data.classes[number]));
  }
  for (const [id, isChecked] of [["all", true], ["none", false]]) {
    byId(id).addEventListener("click", () => {
      place.querySelectorAll("input").forEach((box) => { box.checked = isChecked; });
      controlsChanged();
    });
  }
}

function start() {
  byId("threshold").addEventListener("input", controlsChanged);
  byId("labels").addEventListener("change", controlsChanged);
  byId("close").addEventListener("click", () => byId("large").close());
  buildFilters();
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("large").addEventListener("keydown", (event) => {
    const places = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (places && !event.target.closest(".scroll")) step(places); // there the keys scroll
  });
  for (const gallery of data.galleries) buildGallery(byId(`pictures-${gallery.id}`), gallery);
  const folds = [...document.querySelectorAll("details.gallery")];
  if (matchMedia("(max-width: 40rem)").matches) folds.slice(1).forEach((fold) => { fold.open = false; });
  readControls();
  redraw();
  window.addEventListener("resize", redrawSoon);
  window.addEventListener("pageshow", controlsChanged); // some browsers restore the controls only then
  window.addEventListener("beforeprint", () => {
    folds.forEach((fold) => { fold.open = true; });
    drawStale(() => true);
  });
}

start();
