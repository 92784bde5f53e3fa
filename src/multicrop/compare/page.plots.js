"use strict";
const COLOURS = ["#4878d0", "#ee854a", "#6acc64", "#d65f5f", "#956cb4", "#8c613c", "#dc7ec0", "#82a6c7", "#d5bb67", "#3fb5b5"];
const NARROW = 640; // pixels of the window, below which labels are short

const narrow = () => window.innerWidth <= NARROW;
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const middle = (text, head, tail) => (text.length > head + tail + 1 ? text.slice(0, head) + "…" + text.slice(-tail) : text);
const named = (text) => plain(narrow() ? middle(text, 6, 14) : middle(text, 12, 26));
const tip = (e) => [plain(e.label), ...Object.entries(e.cells).filter(([name, text]) => name !== "method" && text).map(([name, text]) => `${plain(name)}: ${plain(text)}`)].join("<br>");
const distinct = (values) => [...new Set(values)].sort((a, b) => a - b);

function groups(entries, name) {
  const found = new Map();
  for (const entry of entries) found.set(entry[name], [...(found.get(entry[name]) || []), entry]);
  return [...found].sort((a, b) => String(a[0]).localeCompare(String(b[0]), undefined, { numeric: true }));
}

function plot(id, traces, layout = {}) {
  const style = getComputedStyle(document.documentElement), colour = (name) => style.getPropertyValue(name).trim();
  const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--soft"), automargin: true };
  const base = { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour("--text"), size: narrow() ? 11 : 12 }, margin: { l: 45, r: 15, t: 10, b: 45 },
    height: 360, hovermode: "closest", hoverlabel: { align: "left" }, colorway: COLOURS, legend: { orientation: "h", y: 1.02, yanchor: "bottom" } };
  Plotly.react(id, traces, { ...base, ...layout, xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis } }, { responsive: true, displaylogo: false });
}

/** Show a figure where there is something to see, and the task that it is of where the table has several. */
function present(id, seen, entries, among) {
  const figure = document.getElementById(`${id}-figure`);
  figure.hidden = !seen;
  figure.querySelector("figcaption span").textContent = seen && new Set(among.map((e) => e.task)).size > 1 ? `: ${entries[0].task}` : "";
  return seen;
}

/** Ticks at these values of a logarithmic axis, those that would touch left out. */
function ticksAt(values, pixels) {
  const first = Math.log(values[0]), range = Math.log(values[values.length - 1]) - first || 1, kept = [];
  for (const value of values) {
    const place = (pixels * (Math.log(value) - first)) / range;
    if (!kept.length || place - kept[kept.length - 1].place >= 24) kept.push({ place, value });
  }
  return { type: "log", tickvals: kept.map((k) => k.value), ticktext: kept.map((k) => String(k.value)) };
}

/** The label of each point, empty where it would lie on another one; the first entries have the first choice of place. */
function labelled(points, width, height) {
  const taken = [], xs = points.map((p) => Math.log(p.x)), ys = points.map((p) => p.y);
  const place = (values, i, pixels) => ((values[i] - Math.min(...values)) / (Math.max(...values) - Math.min(...values) || 1)) * pixels;
  return points.map((point, i) => {
    const wide = 6.2 * point.name.length, x = place(xs, i, width), y = place(ys, i, height), right = x < width / 2;
    const box = [right ? x : x - wide, y - 7, right ? x + wide : x, y + 7];
    const free = taken.every((t) => box[2] < t[0] || box[0] > t[2] || box[3] < t[1] || box[1] > t[3]);
    if (free) taken.push(box);
    return { text: free ? point.name : "", textposition: right ? "middle right" : "middle left" };
  });
}

function drawCost(entries, among) {
  const calls = distinct(entries.map((e) => e.encoder_calls));
  if (!present("cost", calls.length > 1, entries, among)) return;
  const box = document.getElementById("cost").clientWidth - 70, several = groups(entries, "aggregator");
  const best = new Set(several.map(([, members]) => members.reduce((a, b) => (b.accuracy > a.accuracy ? b : a))));
  const wanted = [...entries].sort((a, b) => b.on_front - a.on_front || best.has(b) - best.has(a) || b.accuracy - a.accuracy);
  const most = narrow() ? 6 : 14; // the others are named by colour and on pointing
  const marks = labelled(wanted.slice(0, most).map((e) => ({ x: e.encoder_calls, y: e.accuracy, name: middle(`${e.aggregator}, ${e.crop}`, 16, 10) })), box, 260);
  const label = new Map(wanted.map((entry, i) => [entry, marks[i] || { text: "", textposition: "middle right" }]));
  const traces = several.map(([name, members]) => ({ name: plain(name), mode: "markers+text", type: "scatter", x: members.map((e) => e.encoder_calls), y: members.map((e) => 100 * e.accuracy),
    text: members.map((e) => plain(label.get(e).text)), textposition: members.map((e) => label.get(e).textposition), textfont: { size: 10 }, hovertext: members.map(tip), hoverinfo: "text", marker: { size: 8, opacity: 0.8 }, cliponaxis: false }));
  const front = entries.filter((e) => e.on_front).sort((a, b) => a.encoder_calls - b.encoder_calls);
  if (new Set(entries.map((e) => e.block)).size === 1 && front.length > 1) traces.push({ name: "front", mode: "lines", type: "scatter", x: front.map((e) => e.encoder_calls), y: front.map((e) => 100 * e.accuracy), line: { dash: "dot", shape: "hv", width: 1 }, hoverinfo: "skip" });
  plot("cost", traces, { xaxis: { ...ticksAt(calls, box), title: { text: "encoder calls per image" } }, yaxis: { title: { text: "top-1 %" } }, height: 360 + (narrow() ? 9 * several.length : 0) });
}

function drawGrid(entries, among) {
  const crops = groups(entries, "crop").map(([name]) => name), aggregators = groups(entries, "aggregator").map(([name]) => name);
  if (!present("grid", crops.length * aggregators.length > 1, entries, among)) return;
  const best = (a, c) => entries.filter((e) => e.aggregator === a && e.crop === c).reduce((x, y) => (x && x.accuracy >= y.accuracy ? x : y), null);
  const cells = aggregators.map((a) => crops.map((c) => best(a, c)));
  const each = (make, none = null) => cells.map((row) => row.map((e) => (e ? make(e) : none))), wide = (document.getElementById("grid").clientWidth - 150) / crops.length;
  plot("grid", [{ type: "heatmap", x: crops.map(plain), y: aggregators.map(plain), z: each((e) => 100 * e.accuracy), text: each((e) => e.cells["top-1 %"].split(" ")[0], ""), hovertext: each(tip), colorscale: "Viridis",
    texttemplate: wide > 30 ? "%{text}" : "", hoverinfo: "text", hoverongaps: false, showscale: !narrow() }], { yaxis: { type: "category" }, xaxis: { type: "category" }, height: Math.max(360, 120 + 20 * aggregators.length) });
}

function drawForest(entries, among) {
  const best = entries.filter((e) => e.difference !== null).sort((a, b) => b.difference - a.difference).slice(0, 30).reverse();
  if (!present("forest", best.length > 1, best, among)) return;
  plot("forest", [{ type: "scatter", mode: "markers", x: best.map((e) => 100 * e.difference), y: best.map((_, i) => i), text: best.map(tip), hoverinfo: "text", marker: { size: 7, color: COLOURS[0] },
    error_x: { type: "data", symmetric: false, array: best.map((e) => 100 * (e.high - e.difference)), arrayminus: best.map((e) => 100 * (e.difference - e.low)), thickness: 1.2, color: COLOURS[0] } }],
    { xaxis: { title: { text: "percent points" }, zeroline: true }, yaxis: { tickvals: best.map((_, i) => i), ticktext: best.map((e) => named(e.label)), zeroline: false }, height: Math.max(340, 60 + 20 * best.length) });
}

function drawShots(entries, among) {
  const few = entries.filter((e) => e.shots), shots = distinct(few.map((e) => e.shots));
  if (!present("shots", shots.length > 1, few, among)) return;
  const curves = groups(few.map((e) => ({ ...e, curve: e.label.replace(/, shots=\d+/, "") })), "curve");
  const traces = curves.map(([name, members]) => {
    const points = members.sort((a, b) => a.shots - b.shots);
    return { name: plain(name), mode: "lines+markers", type: "scatter", x: points.map((e) => e.shots), y: points.map((e) => 100 * e.accuracy), text: points.map(tip), hoverinfo: "text" };
  });
  plot("shots", traces, { xaxis: { ...ticksAt(shots, document.getElementById("shots").clientWidth - 70), title: { text: "shots per class" } }, yaxis: { title: { text: "top-1 %" } }, height: 360 + (narrow() ? 18 * curves.length : 0) });
}
