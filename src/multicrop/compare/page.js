"use strict";
const FILTERS = ["images", "task", "crop", "aggregator", "part", "model"];
const CLASS_COLUMNS = [["class", "name"], ["method %", "own"], ["baseline %", "base"], ["difference", "gain"]];
const state = { sort: "accuracy", down: true, chosen: null, kind: "rescued", filters: {}, text: "", classes: { sort: "gain", down: true } };
let data;

const byId = (id) => document.getElementById(id);
const colourOf = (i) => COLOURS[i % COLOURS.length];

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

async function unpack(id) {
  const bytes = Uint8Array.from(atob(byId(id).textContent.trim()), (c) => c.charCodeAt(0));
  const text = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  byId(id).textContent = "";
  return text;
}

function shown() {
  const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
  const kept = data.entries.filter((e) => FILTERS.every((f) => !state.filters[f] || String(e[f]) === state.filters[f]) && words.every((w) => e.label.toLowerCase().includes(w)));
  return sorted(kept, state, (entry) => (state.sort in entry ? entry[state.sort] : parseFloat(entry.cells[state.sort])));
}

/** Items in the order of a value, those without one last. */
function sorted(items, { down }, value) {
  const order = (a, b) => (typeof a === "string" && typeof b === "string" ? a.localeCompare(b) : a - b);
  const empty = (v) => v === null || v === undefined || Number.isNaN(v);
  return [...items].sort((x, y) => empty(value(x)) - empty(value(y)) || (empty(value(x)) ? 0 : (down ? -1 : 1) * order(value(x), value(y))));
}

function drawFilters() {
  const form = byId("filters");
  form.addEventListener("submit", (event) => event.preventDefault());
  const names = { images: "data", part: "adapter or method" };
  for (const name of FILTERS) {
    const values = [...new Set(data.entries.map((e) => String(e[name])))].filter((v) => v !== "").sort();
    if (values.length < 2) continue;
    const label = element("label", names[name] || name), select = element("select", undefined, { name });
    if (name === "images") state.filters.images = values[0]; // accuracies on different images are not comparable
    else if (name !== "task") select.append(element("option", "all", { value: "" })); // a table, its front and its plots are of one task
    for (const value of values) select.append(element("option", name === "images" ? data.blocks[value].data : value, { value }));
    select.addEventListener("change", () => { state.filters[name] = select.value; if (name === "images") followTask(); draw(); });
    label.append(select);
    form.append(label);
  }
  const label = element("label", "method contains"), input = element("input", undefined, { type: "search", name: "text" });
  input.addEventListener("input", () => { state.text = input.value; draw(); });
  label.append(input);
  form.append(label);
  followTask();
}

function followTask() { // to a task that the chosen images have
  const select = document.querySelector("#filters select[name=task]");
  if (!select) return;
  const tasks = data.entries.filter((e) => !state.filters.images || String(e.images) === state.filters.images).map((e) => e.task);
  if (!tasks.includes(state.filters.task)) state.filters.task = select.value = tasks[0];
}

/** The head of a table: buttons that sort, so that the keyboard sorts too. */
function drawHead(table, columns, by, redraw) {
  const head = element("tr");
  for (const [title, name] of columns) {
    const mark = by.sort === name ? (by.down ? " ▾" : " ▴") : "";
    const th = element("th", undefined, { "data-column": name, scope: "col", "aria-sort": mark ? (by.down ? "descending" : "ascending") : "none" });
    const button = element("button", title + mark, { type: "button" });
    button.addEventListener("click", () => {
      by.down = by.sort === name ? !by.down : !["label", "name"].includes(name);
      by.sort = name;
      redraw();
      table.tHead.querySelector(`th[data-column="${CSS.escape(name)}"] button`).focus();
    });
    th.append(button);
    head.append(th);
  }
  table.tHead.replaceChildren(head);
}

function cell(entry, title) {
  const better = entry.low > 0 ? "good" : entry.high < 0 ? "bad" : "", compared = title.startsWith("vs ") && entry.difference !== null;
  const made = element("td", undefined, compared ? { class: better } : {}), text = entry.cells[title] || "";
  if (title !== "method") made.textContent = text;
  else made.append(element("button", text, { type: "button", title: entry.record }));
  return made;
}

function drawBoard(entries) {
  const titles = [...new Set(entries.flatMap((e) => Object.keys(e.cells)))], table = byId("board");
  const columns = (titles.length ? titles : ["method"]).map((title) => [title, data.sorted_by[title] || (title.startsWith("vs ") ? "difference" : title)]);
  drawHead(table, columns, state, draw);
  table.tBodies[0].replaceChildren(...entries.map((entry) => {
    const row = element("tr", undefined, { "aria-selected": entry === state.chosen, "data-entry": entry.id });
    for (const [title] of columns) row.append(cell(entry, title));
    row.addEventListener("click", () => choose(entry));
    return row;
  }));
}

function choose(entry) {
  state.chosen = entry;
  for (const row of byId("board").tBodies[0].rows) row.setAttribute("aria-selected", row.dataset.entry === String(entry.id));
  drawClasses(entry);
  drawImages(entry);
}

function drawNotes() {
  const chosen = data.blocks.filter((b) => ["images", "task"].every((f) => !state.filters[f] || String(b[f]) === state.filters[f]));
  byId("notes").replaceChildren(...[...new Set(chosen.flatMap((b) => b.notes))].map((note) => element("li", note)));
}

function drawClasses(entry) {
  const table = byId("classes"), rows = entry ? classRows(entry) : [];
  byId("classes-section").hidden = rows.length < 2;
  byId("chosen").textContent = entry ? `${entry.label} on ${data.blocks[entry.block].data}` : "no method";
  drawHead(table, CLASS_COLUMNS, state.classes, () => drawClasses(entry));
  table.tHead.rows[0].append(element("th", "0 to 100 %", { scope: "col" }));
  table.tBodies[0].replaceChildren(...sorted(rows, state.classes, (row) => row[state.classes.sort]).map((row) => {
    const made = element("tr");
    made.append(element("td", row.name), element("td", tenth(row.own)), element("td", tenth(row.base)));
    made.append(element("td", (row.gain >= 0 ? "+" : "") + tenth(row.gain), { class: row.gain > 0 ? "good" : row.gain < 0 ? "bad" : "" }), track(row));
    return made;
  }));
  hints();
}

const tenth = (thousandths) => (thousandths === null ? "" : (thousandths / 10).toFixed(1));

function classRows(entry) {
  return data.blocks[entry.block].classes.map((name, c) => ({ name, own: entry.classes[c], base: entry.base[c], gain: entry.gains[c] })).filter((row) => row.own !== null);
}

/** Method and baseline as two points between 0 and 100 %. */
function track(row) {
  const made = element("td"), line = element("div", undefined, { class: "track" }), put = (name, left) => { const mark = element("i", undefined, { class: name }); mark.style.left = `${left / 10}%`; line.append(mark); return mark; };
  if (row.base !== null) {
    put("line", Math.min(row.own, row.base)).style.width = `${Math.abs(row.own - row.base) / 10}%`;
    put("base", row.base);
  }
  put("own", row.own);
  made.append(line);
  return made;
}

function card(example) {
  const made = element("article", undefined, { class: "card" }), frame = element("div"), match = element("p", "Point at a box to see its best matching texts.", { class: "match" });
  const image = element("img", undefined, { src: "data:image/webp;base64," + data.pictures[example.picture], alt: `${example.kind}: ${example.label}` });
  image.style.aspectRatio = example.aspect;
  frame.append(image);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 1 1");
  svg.setAttribute("preserveAspectRatio", "none");
  example.boxes.forEach(([left, top, right, bottom], i) => {
    const shares = example.plan ? example.plan[i] : null, best = shares ? shares.indexOf(Math.max(...shares)) : i;
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [key, value] of Object.entries({ x: left, y: top, width: right - left, height: bottom - top, stroke: colourOf(best) })) rect.setAttribute(key, value);
    rect.addEventListener("mouseenter", () => { match.textContent = example.says[i]; });
    svg.append(rect);
  });
  frame.append(svg);
  made.append(frame, element("p", `${example.label} (${example.image_id})`), element("p", `baseline: ${example.global}; method: ${example.prediction}`, { class: example.kind === "rescued" ? "good" : "bad" }));
  if (example.boxes.length) made.append(match);
  return made;
}

function drawImages(entry) {
  const examples = entry ? data.examples[entry.id] || [] : [], kinds = ["rescued", "lost", "wrong"];
  byId("images-hint").textContent = examples.length ? "Compared with the global view. Rescued: only the method is right. Lost: only the global view is right. Wrong: neither is right."
    : `This page has no images of this method (it has images of ${Object.keys(data.examples).length} methods).`;
  const buttons = kinds.map((kind) => {
    const button = element("button", `${kind} (${examples.filter((e) => e.kind === kind).length})`, { type: "button", "aria-pressed": kind === state.kind, "data-kind": kind });
    button.addEventListener("click", () => { state.kind = kind; drawImages(entry); });
    return button;
  });
  byId("kinds").replaceChildren(...buttons);
  byId("images").replaceChildren(...examples.filter((e) => e.kind === state.kind).map(card));
}

/** Say where a table goes on: shades at its edges, and a line below it. */
function hints() {
  for (const scroll of document.querySelectorAll(".scroll")) {
    const right = scroll.scrollWidth - scroll.clientWidth - scroll.scrollLeft > 2, below = scroll.scrollHeight - scroll.clientHeight - scroll.scrollTop > 2;
    scroll.parentElement.toggleAttribute("data-right", right);
    scroll.parentElement.toggleAttribute("data-below", below);
    const more = [...(right ? ["columns to the right"] : []), ...(below ? ["rows below"] : [])].join(" and "), line = scroll.parentElement.nextElementSibling;
    if (line.textContent !== (more && `More ${more}: scroll, or use the arrow keys.`)) line.textContent = more && `More ${more}: scroll, or use the arrow keys.`;
  }
}

/** Draw what depends on the width of the window; plots are of one task. */
function drawPlots(entries) {
  const one = entries.filter((e) => e.task === entries[0].task);
  drawCost(one, entries); drawGrid(one, entries); drawForest(entries, []); drawShots(entries, []);
  hints();
}

function draw() {
  const entries = shown();
  if (!entries.includes(state.chosen)) state.chosen = entries[0] || null;
  byId("facts").textContent = `${entries.length} of ${data.entries.length} methods, ${data.runs} runs; baseline: ${data.baseline}`;
  drawBoard(entries);
  drawNotes();
  drawClasses(state.chosen);
  drawImages(state.chosen);
  drawPlots(entries);
}

async function start() {
  const script = element("script", await unpack("plotly"));
  document.head.append(script);
  data = JSON.parse(await unpack("data"));
  for (const entry of data.entries) entry.images = data.blocks[entry.block].images;
  drawFilters();
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  for (const scroll of document.querySelectorAll(".scroll")) scroll.addEventListener("scroll", hints);
  let waiting = 0, width = window.innerWidth;
  window.addEventListener("resize", () => { clearTimeout(waiting); if (width !== window.innerWidth) waiting = setTimeout(() => { width = window.innerWidth; drawPlots(shown()); }, 150); });
  document.body.dataset.ready = "yes";
}

start();
