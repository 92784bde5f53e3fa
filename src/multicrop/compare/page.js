"use strict";
const COLOURS = ["#4878d0", "#ee854a", "#6acc64", "#d65f5f", "#956cb4", "#8c613c", "#dc7ec0", "#82a6c7", "#d5bb67", "#3fb5b5"];
const FILTERS = ["images", "task", "crop", "aggregator", "part", "model"];
const COLUMNS = [["method", "label"], ["runs", "runs"], ["top-1 %", "accuracy"], ["vs baseline [95 %]", "difference"], ["p (Holm)", "p_holm"],
  ["rescued", "rescued"], ["lost", "lost"], ["views", "encoder_calls"], ["seconds", "seconds"], ["*", "on_front"]];
const state = { sort: "accuracy", down: true, chosen: null, kind: "rescued", filters: {}, text: "" };
let data;

const byId = (id) => document.getElementById(id);
const percent = (value, digits = 1) => (100 * value).toFixed(digits);
const signed = (value) => (value >= 0 ? "+" : "") + percent(value);
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const short = (text, length = 40) => (text.length > length ? text.slice(0, length - 1) + "…" : text);
const middle = (text, head = 12, tail = 26) => (text.length > head + tail + 1 ? text.slice(0, head) + "…" + text.slice(-tail) : text);
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
  const value = (e) => (e[state.sort] === null || e[state.sort] === undefined ? -Infinity : e[state.sort]);
  const order = (a, b) => (typeof value(a) === "string" || typeof value(b) === "string" ? String(value(a)).localeCompare(String(value(b))) : value(a) - value(b));
  return kept.sort((a, b) => (state.down ? -order(a, b) : order(a, b)));
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

function cell(entry, name) {
  const value = entry[name];
  if (value === null || value === undefined) return element("td", "");
  if (name === "accuracy") return element("td", percent(value) + (entry.runs > 1 ? " ± " + percent(entry.spread) : ""));
  if (name === "difference") return element("td", `${signed(value)} [${signed(entry.low)}, ${signed(entry.high)}]`, { class: entry.low > 0 ? "good" : entry.high < 0 ? "bad" : "" });
  if (name === "p_holm") return element("td", value < 0.001 ? "<0.001" : value.toFixed(3));
  if (name === "on_front") return element("td", value ? "*" : "");
  if (name === "seconds") return element("td", value.toFixed(2));
  return element("td", String(value));
}

function drawBoard(entries) {
  const head = element("tr");
  for (const [title, name] of COLUMNS) {
    const mark = state.sort === name ? (state.down ? " ▾" : " ▴") : "";
    const th = element("th", title + mark, { "data-column": name, scope: "col", "aria-sort": mark ? (state.down ? "descending" : "ascending") : "none" });
    th.addEventListener("click", () => { state.down = state.sort === name ? !state.down : name !== "label"; state.sort = name; draw(); });
    head.append(th);
  }
  byId("board").tHead.replaceChildren(head);
  const rows = entries.map((entry) => {
    const row = element("tr", undefined, { "aria-selected": entry === state.chosen, title: entry.record });
    for (const [, name] of COLUMNS) row.append(cell(entry, name));
    row.addEventListener("click", () => { state.chosen = entry; draw(); });
    return row;
  });
  byId("board").tBodies[0].replaceChildren(...rows);
}

function drawNotes() {
  const chosen = data.blocks.filter((b) => ["images", "task"].every((f) => !state.filters[f] || String(b[f]) === state.filters[f]));
  byId("notes").replaceChildren(...[...new Set(chosen.flatMap((b) => b.notes))].map((note) => element("li", note)));
}

function plot(id, traces, layout = {}) {
  const style = getComputedStyle(document.documentElement), colour = (name) => style.getPropertyValue(name).trim();
  const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--soft"), automargin: true };
  const base = { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour("--text"), size: 12 }, margin: { l: 55, r: 15, t: 10, b: 45 },
    height: 360, hovermode: "closest", hoverlabel: { align: "left" }, colorway: COLOURS, legend: { orientation: "h", y: 1.02, yanchor: "bottom" } };
  Plotly.react(id, traces, { ...base, ...layout, xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis } }, { responsive: true, displaylogo: false });
}

const tip = (e) => `${plain(e.label)}<br>${percent(e.accuracy)} %` + (e.difference === null ? "" : `, ${signed(e.difference)} [${signed(e.low)}, ${signed(e.high)}]`);

function groups(entries, name) {
  const found = new Map();
  for (const entry of entries) found.set(entry[name], [...(found.get(entry[name]) || []), entry]);
  return [...found].sort((a, b) => String(a[0]).localeCompare(String(b[0]), undefined, { numeric: true }));
}

function drawCost(entries) {
  const traces = groups(entries, "aggregator").map(([name, members]) => ({ name: plain(name), mode: "markers", type: "scatter", x: members.map((e) => e.encoder_calls),
    y: members.map((e) => 100 * e.accuracy), text: members.map(tip), hoverinfo: "text", marker: { size: 8, opacity: 0.8 } }));
  const front = entries.filter((e) => e.on_front).sort((a, b) => a.encoder_calls - b.encoder_calls);
  const one = new Set(entries.map((e) => e.block)).size === 1;
  if (one && front.length > 1) traces.push({ name: "front", mode: "lines", type: "scatter", x: front.map((e) => e.encoder_calls), y: front.map((e) => 100 * e.accuracy), line: { dash: "dot", shape: "hv", width: 1 }, hoverinfo: "skip" });
  plot("cost", traces, { xaxis: { type: "log", title: { text: "encoder calls per image" } }, yaxis: { title: { text: "top-1 %" } } });
}

function drawGrid(entries) {
  const crops = groups(entries, "crop").map(([name]) => name), aggregators = groups(entries, "aggregator").map(([name]) => name);
  const best = (a, c) => { const values = entries.filter((e) => e.aggregator === a && e.crop === c).map((e) => 100 * e.accuracy); return values.length ? Math.max(...values) : null; };
  const z = aggregators.map((a) => crops.map((c) => best(a, c)));
  plot("grid", [{ type: "heatmap", x: crops.map(plain), y: aggregators.map(plain), z, colorscale: "Viridis", texttemplate: crops.length < 9 ? "%{z:.1f}" : "", hovertemplate: "%{y}, %{x}: %{z:.1f} %<extra></extra>", hoverongaps: false }],
    { yaxis: { type: "category" }, xaxis: { type: "category" } });
}

function drawForest(entries) {
  const best = entries.filter((e) => e.difference !== null).sort((a, b) => b.difference - a.difference).slice(0, 30).reverse();
  plot("forest", [{ type: "scatter", mode: "markers", x: best.map((e) => 100 * e.difference), y: best.map((_, i) => i), text: best.map(tip), hoverinfo: "text", marker: { size: 7, color: COLOURS[0] },
    error_x: { type: "data", symmetric: false, array: best.map((e) => 100 * (e.high - e.difference)), arrayminus: best.map((e) => 100 * (e.difference - e.low)), thickness: 1.2, color: COLOURS[0] } }],
    { xaxis: { title: { text: "percent points" }, zeroline: true }, yaxis: { tickvals: best.map((_, i) => i), ticktext: best.map((e) => plain(middle(e.label))), zeroline: false }, height: Math.max(340, 60 + 20 * best.length) });
}

function drawShots(entries) {
  const few = entries.filter((e) => e.shots);
  byId("shots-figure").hidden = few.length === 0;
  if (!few.length) return;
  const traces = groups(few.map((e) => ({ ...e, curve: `${e.part}, ${e.aggregator}, ${e.crop}` })), "curve").map(([name, members]) => {
    const points = members.sort((a, b) => a.shots - b.shots);
    return { name: plain(name), mode: "lines+markers", type: "scatter", x: points.map((e) => e.shots), y: points.map((e) => 100 * e.accuracy), text: points.map(tip), hoverinfo: "text" };
  });
  plot("shots", traces, { xaxis: { type: "log", title: { text: "shots per class" }, tickvals: [1, 2, 4, 8, 16, 32] }, yaxis: { title: { text: "top-1 %" } } });
}

function drawClasses(entry) {
  byId("chosen").textContent = entry ? `${entry.label} on ${data.blocks[entry.block].data}` : "no method";
  if (!entry) return plot("classes", []);
  const names = data.blocks[entry.block].classes;
  const rows = names.map((name, c) => ({ name, method: entry.classes[c], base: entry.base[c] })).filter((r) => r.method !== null)
    .sort((a, b) => (b.method - b.base) - (a.method - a.base));
  const trace = (name, key, colour) => ({ type: "bar", name, x: rows.map((_, i) => i), y: rows.map((r) => r[key] / 10), text: rows.map((r) => `${plain(r.name)}<br>${(r[key] / 10).toFixed(1)} %`), textposition: "none", hoverinfo: "text", marker: { color: colour } });
  plot("classes", [trace("method", "method", COLOURS[0]), trace("baseline", "base", COLOURS[1])],
    { barmode: "group", xaxis: { tickvals: rows.map((_, i) => i), ticktext: rows.map((r) => plain(short(r.name, 24))), tickangle: -60, showticklabels: rows.length <= 80 }, yaxis: { title: { text: "accuracy %" } } });
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
    const says = shares ? `crop ${i + 1}: ` + shares.map((s, t) => [s, example.prompts[t]]).sort((a, b) => b[0] - a[0]).slice(0, 2).map(([s, t]) => `${percent(s, 0)} % ${t}`).join(", ") : `crop ${i + 1}`;
    rect.addEventListener("mouseenter", () => { match.textContent = says; });
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

function draw() {
  const entries = shown();
  if (!entries.includes(state.chosen)) state.chosen = entries[0] || null;
  byId("facts").textContent = `${entries.length} of ${data.entries.length} methods, ${data.runs} runs; baseline: ${data.baseline}`;
  drawBoard(entries);
  drawNotes();
  drawCost(entries); drawGrid(entries); drawForest(entries); drawShots(entries);
  drawClasses(state.chosen);
  drawImages(state.chosen);
}

async function start() {
  const script = element("script", await unpack("plotly"));
  document.head.append(script);
  data = JSON.parse(await unpack("data"));
  for (const entry of data.entries) entry.images = data.blocks[entry.block].images;
  drawFilters();
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  document.body.dataset.ready = "yes";
}

start();
