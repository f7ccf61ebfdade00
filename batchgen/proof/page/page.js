"use strict";
// Everything is in this page: the batch as JSON, and the scores of all heads as text (see pack.py for the code).
// Text from prompts only ever becomes the text of an element, never markup.

const data = JSON.parse(document.getElementById("data").textContent);
const scores = document.getElementById("scores").textContent;
const MOST_PADS = 8; // of more pads in a row only the last ones are drawn, and only their sum is listed: all are alike
const $ = (id) => document.getElementById(id);
const columns = data.rows[0].ids.length;
const shown = columns - data.firstColumn; // columns whose attention is here

const state = {
  layer: 0,
  head: 0,
  masked: true,
  below: "ids",
  right: false, // pads stand behind the tokens; columns are still counted as on the left
  pinned: null, // { row, column }: clicked or focused
  hovered: null,
};

/** The column of a token as it is shown, and back: with pads on the right they come last. */
const shownColumn = (row, column) => (state.right ? (column - numPads[row] + columns) % columns : column);
const columnShownAt = (row, place) => (state.right ? (place + numPads[row]) % columns : place);

// --- Scores: row by row, layer, head, query, key; one or two characters each. ---

const digitOf = new Uint8Array(128);
[..."ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"].forEach((sign, value) => {
  digitOf[sign.charCodeAt(0)] = value;
});
const mostCode = 64 ** data.digits - 1;

const numPads = data.rows.map((row) => row.mask.filter((real) => !real).length);
const shownPads = numPads.map((pads) => Math.max(0, pads - data.firstColumn));
const numQueries = shownPads.map((pads) => shown - pads);
// Scores of one head up to its query i: each query has a key more than the one before.
const scoresBefore = (row, i) => i * (data.folded + shownPads[row] + 1) + (i * (i - 1)) / 2;
const headSizes = numQueries.map((queries, row) => scoresBefore(row, queries));
const rowStarts = [];
headSizes.reduce((start, size, row) => {
  rowStarts[row] = start;
  return start + size * data.layers * data.heads;
}, 0);

/** How far the score at a place lies below its query's largest; Infinity where there is none. */
function depthAt(place) {
  const start = place * data.digits;
  let code = 0;
  for (let i = 0; i < data.digits; i++) code = code * 64 + digitOf[scores.charCodeAt(start + i)];
  return code === 0 ? Infinity : data.depth * ((mostCode - code) / (mostCode - 1)) ** 2;
}

/** The keys of a query: a label each, whether it is real, and its column (none for what is folded). */
function keysOf(row, column) {
  const { labels, mask } = data.rows[row];
  const keys = [];
  if (data.folded) {
    const left = data.firstColumn;
    const pads = Math.min(left, numPads[row]);
    keys.push({ label: `«${pads} pads»`, real: 0, column: null });
    keys.push({ label: `«${left - pads} text»`, real: 1, column: null });
  }
  for (let c = data.firstColumn; c <= column; c++) keys.push({ label: labels[c], real: mask[c], column: c });
  return keys;
}

/** Softmax weights of one head's query over its keys, with the pads masked or not. */
function headWeights(row, layer, head, column, keys, masked) {
  const query = column - data.firstColumn - shownPads[row];
  const place = rowStarts[row] + (layer * data.heads + head) * headSizes[row] + scoresBefore(row, query);
  const weights = keys.map((key, i) => (masked && !key.real ? 0 : Math.exp(-depthAt(place + i))));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => (total ? weight / total : 0));
}

/** The same for the chosen layer and head, or the mean over them. */
function weightsOf(row, column, keys, masked) {
  const all = (number) => [...Array(number).keys()];
  const layers = state.layer === data.layers ? all(data.layers) : [state.layer];
  const heads = state.head === data.heads ? all(data.heads) : [state.head];
  const sums = new Array(keys.length).fill(0);
  for (const layer of layers) {
    for (const head of heads) {
      headWeights(row, layer, head, column, keys, masked).forEach((weight, i) => (sums[i] += weight));
    }
  }
  return sums.map((sum) => sum / (layers.length * heads.length));
}

const hasAttention = (row, column) =>
  row < data.packedRows && column >= data.firstColumn && data.rows[row].mask[column] === 1;

// --- Drawing. ---

const percent = (share) => (share === 0 ? "0" : share < 0.001 ? "<0.1%" : `${(100 * share).toFixed(1)}%`);

function element(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function bar(share) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const rect = document.createElementNS(space, "rect");
  for (const [name, value] of Object.entries({ class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none" })) {
    svg.setAttribute(name, value);
  }
  svg.setAttribute("aria-hidden", "true");
  rect.setAttribute("width", (100 * share).toFixed(2));
  rect.setAttribute("height", "10");
  svg.append(rect);
  return svg;
}

const grid = $("grid");
const cells = [...grid.rows].map((tr) => [...tr.cells].slice(1));
const current = () => state.hovered || state.pinned;

function drawBelow() {
  cells.forEach((row, r) => row.forEach((td, c) => (td.lastElementChild.textContent = data.rows[r][state.below][c])));
}

function drawGrid() {
  const { row, column } = current();
  const keys = hasAttention(row, column) ? keysOf(row, column) : [];
  const weights = keys.length ? weightsOf(row, column, keys, state.masked) : [];
  const byColumn = new Map(keys.map((key, i) => [key.column, weights[i]]));
  cells.forEach((line, r) => {
    grid.rows[r].classList.toggle("current", r === row);
    line.forEach((td, c) => {
      const weight = (r === row && byColumn.get(c)) || 0;
      td.style.setProperty("--weight", Math.sqrt(weight).toFixed(3));
      td.classList.toggle("shaded", weight > 0.0005);
      td.classList.toggle("query", r === row && c === column);
    });
  });
}

function drawDetails() {
  const { row, column } = current();
  const { labels, ids, positions, mask, eos } = data.rows[row];
  const facts = [
    ["token", labels[column] + (mask[column] && eos[column] ? " (genuine eos)" : "")],
    ["id", ids[column]],
    ["row", data.rows[row].id],
    ["column", shownColumn(row, column)],
    ["position", positions[column]],
    ["mask", mask[column]],
  ];
  if (!mask[column]) {
    facts.push(["attends to", "nothing that counts: a pad's own row is never read"]);
  } else if (!hasAttention(row, column)) {
    facts.push(["attends to", "not in this page"]);
  } else {
    const keys = keysOf(row, column);
    const weights = weightsOf(row, column, keys, state.masked);
    const order = [...weights.keys()].sort((a, b) => weights[b] - weights[a]).slice(0, 3);
    facts.push(["attends to", order.map((i) => `${keys[i].label} ${percent(weights[i])}`).join("  ")]);
    facts.push(["on pads", percent(onPads(keys, weights)), onPads(keys, weights) > 0 ? "alert" : ""]);
  }
  $("details").replaceChildren(
    ...facts.map(([name, value, className]) => {
      const pair = document.createElement("div");
      pair.append(element("dt", name), element("dd", String(value), className || ""));
      return pair;
    }),
  );
}

const onPads = (keys, weights) => weights.reduce((sum, weight, i) => sum + (keys[i].real ? 0 : weight), 0);

function drawWeights() {
  const { row, column } = current();
  const table = $("weights");
  const body = table.tBodies[0];
  if (!hasAttention(row, column)) {
    table.caption.textContent = data.rows[row].mask[column] ? "Not in this page" : "A pad is never the query that counts";
    body.replaceChildren();
    return;
  }
  const keys = keysOf(row, column);
  const [masked, unmasked] = [true, state.right].map((is) => weightsOf(row, column, keys, is));
  table.caption.textContent = `What ${data.rows[row].labels[column]} attends to: ${headName()}`;
  const listed = [...keys.keys()].filter((i) => keys[i].real || (!state.right && numPads[row] <= MOST_PADS));
  const most = Math.max(...listed.flatMap((i) => [masked[i], unmasked[i]]));
  body.replaceChildren(
    ...listed.map((i) => weightRow(keys[i].label, keys[i].real, masked[i], unmasked[i], most)),
    weightRow(`all ${numPads[row]} pads`, 0, onPads(keys, masked), onPads(keys, unmasked), most, "sum"),
  );
}

function weightRow(label, real, masked, unmasked, most, className = "") {
  const tr = document.createElement("tr");
  tr.className = `${className} ${real ? "" : "pad"}`.trim();
  tr.append(element("td", label));
  for (const [share, isActive, name] of [[masked, state.masked, "with"], [unmasked, !state.masked, "ghost"]]) {
    const td = element("td", "", `${name} ${isActive ? "" : "off"}`.trim());
    const value = element("div", "", "value");
    value.append(element("span", percent(share), "number"), className ? element("span") : bar(most ? share / most : 0));
    td.append(value);
    tr.append(td);
  }
  return tr;
}

const headName = () =>
  `${state.layer === data.layers ? "mean over layers" : `layer ${state.layer}`}, ` +
  `${state.head === data.heads ? "mean over heads" : `head ${state.head}`}`;

// --- The map: queries down, keys across, for the current row. ---

const LABEL = 74; // pixels for the labels left and above
let cell = 20;
let firstLine = 0; // the first column that is drawn

const short = (label) => (label.length > 9 ? `${label.slice(0, 8)}…` : label);

function drawMap() {
  const { row, column } = current();
  const canvas = $("map");
  firstLine = Math.max(data.firstColumn, numPads[row] - (state.right ? 0 : MOST_PADS));
  const lines = [...Array(columns - firstLine).keys()].map((i) => firstLine + i);
  const across = isDrawn(keysOf(row, columns - 1));
  const room = canvas.closest("section").clientWidth - 44;
  cell = Math.max(9, Math.min(26, Math.floor((Math.min(room, 640) - LABEL) / across.length)));
  const [width, height] = [LABEL + cell * across.length + 1, LABEL + cell * lines.length + 1];
  const ratio = window.devicePixelRatio || 1;
  [canvas.width, canvas.height] = [width * ratio, height * ratio];
  [canvas.style.width, canvas.style.height] = [`${width}px`, `${height}px`];
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.font = `${Math.min(12, cell + 1)}px ${colour("--mono")}`;
  pen.textBaseline = "middle";
  drawLabels(pen, row, across, lines, column, colour);
  lines.forEach((query, y) => drawLine(pen, row, query, y, colour));
  pen.strokeStyle = colour("--accent");
  pen.lineWidth = 2;
  if (column >= firstLine) pen.strokeRect(LABEL, LABEL + cell * (column - firstLine), cell * across.length, cell);
  canvas.setAttribute("aria-label", mapText(row));
  $("map-note").textContent =
    `Row ${data.rows[row].id}, ${headName()}: queries down, keys across; the stronger the colour, the larger the weight. ` +
    (firstLine > data.firstColumn && !state.right ? `The first ${firstLine - data.firstColumn} pads are not drawn. ` : "") +
    (state.right ? "No token looks at the pads behind it." : state.masked ? "Pads are masked." : "The mask is off: pads take their share.");
}

const isDrawn = (keys) =>
  keys.filter((key) => (key.column === null ? key.real || !state.right : key.column >= firstLine));

const mapText = (row) =>
  `Attention of row ${data.rows[row].id}, ${headName()}, mask ${state.masked ? "on" : "off"}; ` +
  "the table beside it has the query's weights as text";

function drawLabels(pen, row, across, lines, column, colour) {
  const { labels, mask } = data.rows[row];
  pen.textAlign = "right";
  lines.forEach((query, y) => {
    pen.fillStyle = colour(query === column ? "--accent" : mask[query] ? "--ink" : "--dim");
    pen.fillText(short(labels[query]), LABEL - 6, LABEL + cell * (y + 0.5));
  });
  pen.textAlign = "left";
  across.forEach((key, x) => {
    pen.save();
    pen.translate(LABEL + cell * (x + 0.5), LABEL - 6);
    pen.rotate(-Math.PI / 2);
    pen.fillStyle = colour(key.real ? "--ink" : "--dim");
    pen.fillText(short(key.label), 0, 0);
    pen.restore();
  });
}

function drawLine(pen, row, query, y, colour) {
  const top = LABEL + cell * y;
  const gap = cell > 12 ? 1 : 0.5;
  const keys = keysOf(row, query);
  const weights = hasAttention(row, query) ? weightsOf(row, query, keys, state.masked) : [];
  const weightOf = new Map(keys.map((key, i) => [key.label + key.column, weights[i]]));
  isDrawn(keys).forEach((key, x) => {
    const [left, size] = [LABEL + cell * x, cell - gap];
    const weight = weightOf.get(key.label + key.column);
    pen.fillStyle = colour("--pad");
    pen.fillRect(left, top, size, size);
    if (!weight) return;
    pen.globalAlpha = Math.sqrt(weight);
    pen.fillStyle = colour(key.real ? "--heat" : "--ghost");
    pen.fillRect(left, top, size, size);
    pen.globalAlpha = 1;
  });
}

function drawCards() {
  document.querySelectorAll(".card").forEach((card) => {
    card.classList.toggle("current", Number(card.dataset.row) === current().row);
    for (const part of card.querySelectorAll(".with")) part.hidden = !state.masked;
    for (const part of card.querySelectorAll(".without")) part.hidden = state.masked;
  });
}

function drawControls() {
  $("layer-name").textContent = state.layer === data.layers ? "mean" : state.layer;
  $("head-name").textContent = state.head === data.heads ? "mean" : state.head;
  $("layer").setAttribute("aria-valuetext", $("layer-name").textContent);
  $("head").setAttribute("aria-valuetext", $("head-name").textContent);
  $("mask").setAttribute("aria-checked", String(state.masked));
  $("mask").lastElementChild.textContent = state.masked ? "on" : "off";
  $("mask").disabled = state.right; // causal attention hides what stands behind a token anyway
  $("side-note").hidden = !state.right;
}

function draw() {
  drawControls();
  drawGrid();
  drawDetails();
  drawWeights();
  drawMap();
  drawCards();
}

// --- Input. ---

function placeOf(target) {
  const td = target instanceof Element ? target.closest("td") : null;
  if (!td || !grid.contains(td)) return null;
  const row = td.parentElement.rowIndex;
  return { row, column: columnShownAt(row, td.cellIndex - 1) };
}

function isSame(one, other) {
  return one === other || (one && other && one.row === other.row && one.column === other.column);
}

function hover(place) {
  if (isSame(place, state.hovered)) return;
  state.hovered = place;
  draw();
}

function pin(place, { focus = false } = {}) {
  const before = state.pinned;
  if (before) cells[before.row][before.column].tabIndex = -1;
  cells[place.row][place.column].tabIndex = 0;
  if (focus) cells[place.row][place.column].focus();
  if (isSame(place, before) && !state.hovered) return;
  state.pinned = place;
  state.hovered = null;
  draw();
}

function moveBy(event) {
  const { row } = state.pinned;
  const column = shownColumn(row, state.pinned.column);
  const moves = {
    ArrowLeft: [row, column - 1],
    ArrowRight: [row, column + 1],
    ArrowUp: [row - 1, column],
    ArrowDown: [row + 1, column],
    Home: [row, 0],
    End: [row, columns - 1],
  };
  const to = moves[event.key];
  if (!to || !placeOf(event.target)) return;
  event.preventDefault();
  const clamp = (value, most) => Math.max(0, Math.min(value, most));
  const line = clamp(to[0], cells.length - 1);
  pin({ row: line, column: columnShownAt(line, clamp(to[1], columns - 1)) }, { focus: true });
}

function pinFromMap(event) {
  const line = Math.floor((event.offsetY - LABEL) / cell);
  if (line >= 0 && firstLine + line < columns) pin({ row: current().row, column: firstLine + line });
}

/** Moves each row's pads to the other end. */
function padOn(side) {
  if (state.right === (side === "right")) return;
  state.right = side === "right";
  state.masked = true;
  cells.forEach((row, r) => {
    const pads = row.slice(0, numPads[r]);
    if (state.right) grid.rows[r].append(...pads);
    else grid.rows[r].cells[0].after(...pads);
  });
  draw();
}

/** Says that a grid goes on behind its edge, until it is scrolled there. */
function drawCue() {
  const shelf = grid.parentElement;
  $("cue").hidden = shelf.scrollLeft + shelf.clientWidth >= shelf.scrollWidth - 8;
}

const THEMES = ["system", "light", "dark"];

function nextTheme() {
  const root = document.documentElement;
  const theme = THEMES[(THEMES.indexOf(root.dataset.theme || "system") + 1) % THEMES.length];
  if (theme === "system") delete root.dataset.theme;
  else root.dataset.theme = theme;
  $("theme").lastElementChild.textContent = theme;
  drawMap();
}

/** To begin with: a row that has both pads and tokens, and attention in this page; of two the one with more pads. */
function firstRow() {
  const worth = numPads.map((pads, row) =>
    hasAttention(row, columns - 1) ? Math.min(pads, columns - pads) + pads / (columns + 1) : -1,
  );
  return worth.indexOf(Math.max(...worth));
}

function start() {
  grid.querySelectorAll("td").forEach((td) => (td.tabIndex = -1));
  for (const [name, number] of [["layer", data.layers], ["head", data.heads]]) {
    $(name).max = number; // the last stop is the mean
    $(name).addEventListener("input", (event) => {
      state[name] = Number(event.target.value);
      draw();
    });
  }
  $("mask").addEventListener("click", () => {
    state.masked = !state.masked;
    draw();
  });
  $("below").addEventListener("change", (event) => {
    state.below = event.target.value;
    drawBelow();
  });
  $("side").addEventListener("change", (event) => padOn(event.target.value));
  grid.parentElement.addEventListener("scroll", drawCue, { passive: true });
  window.addEventListener("resize", drawCue);
  grid.addEventListener("pointerover", (event) => hover(placeOf(event.target)));
  grid.addEventListener("pointerleave", () => hover(null));
  grid.addEventListener("click", (event) => placeOf(event.target) && pin(placeOf(event.target)));
  grid.addEventListener("focusin", (event) => placeOf(event.target) && pin(placeOf(event.target)));
  grid.addEventListener("keydown", moveBy);
  $("map").addEventListener("click", pinFromMap);
  $("theme").addEventListener("click", nextTheme);
  window.addEventListener("resize", drawMap);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawMap);
  $("theme").hidden = $("below").hidden = $("side").hidden = false;
  // Where the tokens are; on a phone where the pads are, which are what the page is about.
  if (!matchMedia("(max-width: 700px)").matches) grid.parentElement.scrollLeft = grid.parentElement.scrollWidth;
  pin({ row: firstRow(), column: columns - 1 });
  drawCue();
}

start();
