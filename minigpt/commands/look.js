// `data` is written by `contents` in look.py. N tokens are shown, of L layers and H heads.
const N = data.tokens.length;
const L = data.model.layers;
const H = data.model.heads;
const said = data.lens[L]; // behind the last layer: what the model says

// What is chosen; everything on the page is drawn from this and `data`.
const state = { token: N - 1, layer: Math.floor(L / 2), head: 0, all: false };

const label = (token) => data.vocabulary[token][0];
const spelled = (token) => `token ${token}, ${data.vocabulary[token][1]}`;

// Small tools -------------------------------------------------------------------------------------

function sign(token) {
  const element = make("span", "sign", label(token));
  element.title = spelled(token);
  return element;
}

function percent(p) {
  if (p >= 0.9995) return "100%";
  if (p >= 0.1) return (100 * p).toFixed(1) + "%";
  if (p >= 0.001) return (100 * p).toFixed(2) + "%";
  return p < 0.00001 ? "<0.001%" : (100 * p).toFixed(3) + "%";
}

/** A weight of attention, no finer than it is kept. */
function share(weight) {
  const digits = data.steps > 255 ? 2 : 0;
  const text = (100 * weight).toFixed(digits);
  return Number(text) ? text + "%" : `<${(10 ** -digits).toString()}%`;
}

/** A number of three digits or so. */
function short(value) {
  if (value === null) return "∞";
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3);
}

/** The value of a colour of page.css. */
function colour(name, alpha = 1) {
  const value = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  return value.includes("#") ? value : `rgb(${value} / ${alpha})`;
}

/** Fills an element's background with `strength` (0 to 1) of blue, and keeps its text readable. */
function shade(element, strength) {
  element.style.background = `rgb(var(--blue) / ${strength.toFixed(3)})`;
  element.classList.toggle("strong", strength > 0.55);
}

/** A canvas of `width` by `height` on the page, sharp on every screen. */
function sized(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.clearRect(0, 0, width, height);
  return context;
}

// Attention ---------------------------------------------------------------------------------------

// Of each layer: head after head, row after row, the weight of what is earlier than the tokens shown,
// if anything is, and those of the tokens up to the row's own.
const before = data.earlier > 0 ? 1 : 0;
const rowStart = (row) => (row * (row + 1)) / 2 + row * before;
const decoded = new Map();

function weightsOf(layer) {
  if (!decoded.has(layer)) {
    const bytes = Uint8Array.from(atob(data.attention[layer]), (c) => c.charCodeAt(0));
    const pair = (_, i) => bytes[2 * i] + 256 * bytes[2 * i + 1];
    const wide = data.steps > 255;
    decoded.set(layer, wide ? Uint16Array.from({ length: bytes.length / 2 }, pair) : bytes);
  }
  return decoded.get(layer);
}

/** The weights, 0 to 1, that `row` gives to the tokens up to itself. */
function attentionRow(layer, head, row) {
  const start = head * rowStart(N) + rowStart(row) + before;
  return Array.from(weightsOf(layer).subarray(start, start + row + 1), (w) => w / data.steps);
}

function earlierWeight(layer, head, row) {
  return before ? weightsOf(layer)[head * rowStart(N) + rowStart(row)] / data.steps : 0;
}

/** All rows of a head as a picture of N by N points. Darker by the square root, to show small ones. */
function headPicture(layer, head) {
  const picture = document.createElement("canvas");
  picture.width = picture.height = N;
  const context = picture.getContext("2d");
  const image = context.createImageData(N, N);
  const [r, g, b] = colour("blue").match(/\d+/g).map(Number);
  for (let row = 0; row < N; row++) {
    attentionRow(layer, head, row).forEach((weight, column) => {
      image.data.set([r, g, b, Math.round(255 * Math.sqrt(weight))], 4 * (row * N + column));
    });
  }
  context.putImageData(image, 0, 0);
  return picture;
}

const gridSizes = { left: 26, top: 20, cell: 0, gap: 3 };

function drawHeads() {
  const canvas = at("heads");
  const { left, top, gap } = gridSizes;
  const room = canvas.parentElement.clientWidth - left;
  const cell = (gridSizes.cell = Math.max(14, Math.min(120, Math.floor(room / H))));
  const context = sized(canvas, left + H * cell, top + L * cell);
  context.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  context.fillStyle = colour("muted");
  context.textBaseline = "middle";
  const every = cell < 18 ? 5 : 1; // numbers have no room everywhere
  context.textAlign = "center";
  for (let head = 0; head < H; head += every) {
    context.fillText(head + 1, left + head * cell + (cell - gap) / 2, top / 2);
  }
  context.textAlign = "right";
  for (let layer = 0; layer < L; layer += every) {
    context.fillText(layer + 1, left - 6, top + layer * cell + (cell - gap) / 2);
  }
  for (let layer = 0; layer < L; layer++) {
    for (let head = 0; head < H; head++) {
      drawHead(context, layer, head, left + head * cell, top + layer * cell, cell - gap);
    }
  }
  const chosen = `layer ${state.layer + 1}, head ${state.head + 1}`;
  canvas.setAttribute("aria-label", `Attention of ${L} layers with ${H} heads each; chosen: ${chosen}`);
  at("heads-say").textContent = state.all
    ? "Rows are tokens, the first on top; the chosen token's row is marked."
    : "From the first token on the left to the chosen one on the right.";
}

function drawHead(context, layer, head, x, y, side) {
  context.fillStyle = colour("panel");
  context.fillRect(x, y, side, side);
  if (state.all) {
    context.imageSmoothingEnabled = N > side;
    context.drawImage(headPicture(layer, head), x, y, side, side);
    context.fillStyle = colour("orange");
    context.fillRect(x, y + (side * (state.token + 0.5)) / N - 0.5, side, 1);
  } else {
    const weights = attentionRow(layer, head, state.token);
    const step = side / weights.length;
    const thick = step > 4 ? step - 1 : Math.max(step, 0.7);
    context.fillStyle = colour("blue");
    weights.forEach((weight, column) => {
      const height = side * Math.sqrt(weight);
      context.fillRect(x + column * step, y + side - height, thick, height);
    });
  }
  if (layer === state.layer && head === state.head) {
    context.strokeStyle = colour("ink");
    context.lineWidth = 2;
    context.strokeRect(x - 1, y - 1, side + 2, side + 2);
  }
}

function drawHeadInWords() {
  at("head-title").textContent = `Layer ${state.layer + 1}, head ${state.head + 1}`;
  const weights = attentionRow(state.layer, state.head, state.token);
  const looked = at("looked");
  looked.replaceChildren();
  const earlier = earlierWeight(state.layer, state.head, state.token);
  if (before) {
    const element = make("span", "", `… ${data.earlier} earlier`);
    element.title = `together ${share(earlier)}`;
    shade(element, Math.sqrt(earlier));
    looked.append(element);
  }
  data.tokens.forEach((token, place) => {
    const element = make("span", place === state.token ? "self" : "", label(token));
    const seen = place < weights.length;
    const weight = seen ? weights[place] : 0;
    element.title = seen ? `${share(weight)} · ${spelled(token)}` : "comes later: hidden";
    element.style.opacity = seen ? 1 : 0.35;
    shade(element, Math.sqrt(weight));
    looked.append(element, document.createElement("wbr"));
  });
  const say = at("looked-say");
  say.replaceChildren("Here ", sign(data.tokens[state.token]), " looks most at ");
  const most = weights.map((weight, place) => [weight, place]).sort((a, b) => b[0] - a[0]);
  most.slice(0, 4).forEach(([weight, place], number) => {
    const itself = place === state.token ? " (itself)" : "";
    say.append(number ? ", " : "", sign(data.tokens[place]), `${itself} ${share(weight)}`);
  });
  say.append(before ? `; all earlier tokens together have ${share(earlier)}.` : ".");
}

function drawMap() {
  const canvas = at("map");
  const side = Math.min(canvas.parentElement.clientWidth, 380);
  const context = sized(canvas, side, side);
  context.fillStyle = colour("panel");
  context.fillRect(0, 0, side, side);
  context.imageSmoothingEnabled = N > side;
  context.drawImage(headPicture(state.layer, state.head), 0, 0, side, side);
  const step = side / N;
  context.strokeStyle = colour("orange");
  context.lineWidth = 1.5;
  const length = Math.max((state.token + 1) * step - 1, 1);
  context.strokeRect(0.75, state.token * step + 0.25, length, Math.max(step - 0.5, 1.5));
  const name = `layer ${state.layer + 1}, head ${state.head + 1}`;
  const where = "those of the chosen token are in the sentence above";
  canvas.setAttribute("aria-label", `All weights of ${name}; ${where}`);
  sayCell(state.token, state.token);
}

/** Says what token `row` gives to token `column`. */
function sayCell(row, column) {
  const cell = at("cell");
  const weight = share(attentionRow(state.layer, state.head, row)[column]);
  const from = [sign(data.tokens[row]), ` (${row + 1}) gives `];
  const to = row === column ? ["itself"] : [sign(data.tokens[column]), ` (${column + 1})`];
  cell.replaceChildren(...from, ...to, ` ${weight}`);
}

/** The [row, column] of the map under a pointer; null in the future. */
function cellUnder(event) {
  const box = at("map").getBoundingClientRect();
  const place = (value, size) => Math.max(0, Math.min(N - 1, Math.floor((value / size) * N)));
  const row = place(event.clientY - box.top, box.height);
  const column = place(event.clientX - box.left, box.width);
  return column <= row ? [row, column] : null;
}

// Guesses -----------------------------------------------------------------------------------------

function bar(name, strength, number, className = "") {
  const row = make("li", className);
  const line = make("div", "bar");
  line.style.width = `${(100 * Math.max(0, strength)).toFixed(2)}%`;
  const room = make("div");
  room.append(line);
  row.append(name, room, make("span", "number", number));
  return row;
}

function drawNext() {
  const following = data.tokens[state.token + 1]; // undefined behind the last
  const rows = said.tokens[state.token].map((token, place) => {
    const p = said.probabilities[state.token][place];
    const name = make("span", "", label(token));
    name.title = spelled(token);
    return bar(name, p, percent(p), token === following ? "real" : "");
  });
  at("likeliest").replaceChildren(...rows);
  const real = at("real");
  if (following === undefined) {
    real.replaceChildren("The prompt ends here: what comes next is open.");
    return;
  }
  const bits = said.bits[state.token];
  const rank = said.ranks[state.token];
  const p = bits === null ? 0 : 2 ** -bits;
  real.replaceChildren(
    "What really came: ", sign(following), `, with ${percent(p)}, the model's guess number `,
    `${rank.toLocaleString("en")}: ${short(bits)} bits of surprise.`,
  );
}

function drawLens() {
  const following = data.tokens[state.token + 1];
  const rows = data.lens.map((guess, depth) => {
    const row = make("tr", depth === state.layer + 1 ? "chosen" : "");
    const name = make("th", "", depth ? `layer ${depth}` : "embedding");
    name.scope = "row";
    const guesses = make("div", "guesses");
    guess.tokens[state.token].slice(0, 6).forEach((token, place) => {
      const p = guess.probabilities[state.token][place];
      const element = make("span", token === following ? "guess real" : "guess", label(token));
      element.title = spelled(token);
      element.append(make("small", "", percent(p)));
      shade(element, p);
      guesses.append(element);
    });
    const rank = make("td", "number", "–");
    if (following !== undefined) {
      rank.textContent = `no. ${guess.ranks[state.token].toLocaleString("en")}`;
      rank.title = `${short(guess.bits[state.token])} bits`;
    }
    const cell = make("td");
    cell.append(guesses);
    row.append(name, rank, cell);
    if (depth) row.addEventListener("click", () => choose({ layer: depth - 1 }));
    return row;
  });
  at("guesses").tBodies[0].replaceChildren(...rows);
}

// The stream and the units ------------------------------------------------------------------------

function drawNorms() {
  const svg = at("norms");
  const width = svg.clientWidth || 560;
  const [height, left, bottom, top] = [260, 52, 40, 10];
  const floor = height - bottom;
  const of = (all) => all.map((norms) => norms[state.token] ?? 0);
  const ofLayers = (name) => of(data.layers.map((layer) => layer[name]));
  const [stream, attended, written] = [of(data.norms), ofLayers("attended"), ofLayers("written")];
  const most = Math.max(...stream, ...attended, ...written) || 1;
  const column = (width - left) / (L + 1);
  const middle = (depth) => left + (depth + 0.5) * column;
  const y = (value) => floor - (value / most) * (floor - top);
  const shapes = [];
  const add = (kind, attributes, text) => shapes.push(shape(kind, attributes, text));

  const chosen = left + (state.layer + 1) * column;
  add("rect", { class: "band", x: chosen, y: top, width: column, height: floor - top });
  for (const value of [0, most / 2, most]) {
    add("line", { class: "grid", x1: left, x2: width, y1: y(value), y2: y(value) });
    const number = { x: left - 8, y: y(value) + 4, "text-anchor": "end" };
    add("text", number, value ? short(value) : "0");
  }

  const thick = Math.min(column * 0.32, 22);
  const draw = (name, value, x) =>
    add("rect", { class: name, x, y: y(value), width: Math.max(thick - 1, 1), height: floor - y(value) });
  for (let layer = 0; layer < L; layer++) {
    draw("attended", attended[layer], middle(layer + 1) - thick);
    draw("written", written[layer], middle(layer + 1));
  }

  const points = stream.map((value, depth) => `${middle(depth).toFixed(1)},${y(value).toFixed(1)}`);
  add("polyline", { class: "stream", points: points.join(" ") });
  const every = Math.ceil((L + 1) / 14);
  stream.forEach((value, depth) => {
    add("circle", { class: "point", cx: middle(depth), cy: y(value), r: L > 24 ? 2 : 3.5 });
    if (depth % every === 0) {
      const name = depth || (column > 52 ? "embedding" : "emb.");
      add("text", { x: middle(depth), y: floor + 18, "text-anchor": "middle" }, name);
    }
  });
  add("text", { x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }, "layer");

  // What is clicked: the whole column of a layer.
  for (let layer = 0; layer < L; layer++) {
    const x = left + (layer + 1) * column;
    const whole = shape("rect", { class: "column", x, y: top, width: column, height: height - top });
    whole.addEventListener("click", () => choose({ layer }));
    shapes.push(whole);
  }
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren(...shapes);
  at("norms-say").textContent =
    `Layer ${state.layer + 1}: attention added ${short(attended[state.layer])}, ` +
    `the MLP ${short(written[state.layer])}; ` +
    `the stream behind it has ${short(stream[state.layer + 1])}.`;
}

function drawUnits() {
  const values = data.layers[state.layer].activations[state.token];
  const most = Math.max(...values.map((value) => value ?? 0), 1e-9);
  const rows = data.layers[state.layer].units[state.token].map((unit, place) =>
    bar(make("span", "", `unit ${unit}`), (values[place] ?? most) / most, short(values[place])),
  );
  at("active").replaceChildren(...rows);
  at("units-title").textContent = `Which units of the MLP are active in layer ${state.layer + 1}`;
}

// Choosing ----------------------------------------------------------------------------------------

/** Changes what is chosen, within what there is, and draws it. */
function choose(changes) {
  Object.assign(state, changes);
  state.token = Math.max(0, Math.min(N - 1, state.token));
  state.layer = Math.max(0, Math.min(L - 1, state.layer));
  state.head = Math.max(0, Math.min(H - 1, state.head));
  draw();
}

/** Scrolls `box`, and not the page, until `element` is in sight. */
function scrollInto(box, element) {
  const top = element.offsetTop - box.offsetTop;
  const bottom = top + element.offsetHeight;
  if (top < box.scrollTop) box.scrollTop = top - 3;
  if (bottom > box.scrollTop + box.clientHeight) box.scrollTop = bottom - box.clientHeight + 3;
}

function draw() {
  const buttons = at("tokens").children;
  Array.from(buttons).forEach((button, place) => {
    const chosen = place === state.token;
    button.setAttribute("aria-selected", chosen);
    button.tabIndex = chosen ? 0 : -1;
  });
  scrollInto(at("tokens"), buttons[state.token]);
  at("one-row").setAttribute("aria-pressed", !state.all);
  at("all-rows").setAttribute("aria-pressed", state.all);
  const token = data.tokens[state.token];
  const bits = state.token ? said.bits[state.token - 1] : undefined;
  const surprise = bits === undefined ? "" : `, ${short(bits)} bits of surprise`;
  at("state").replaceChildren(
    `Token ${state.token + 1} of ${N}: `, sign(token), ` (${spelled(token)}${surprise}) · `,
    `layer ${state.layer + 1} of ${L} · head ${state.head + 1} of ${H}`,
  );
  drawNext();
  drawLens();
  drawHeads();
  drawHeadInWords();
  drawMap();
  drawNorms();
  drawUnits();
}

function keyed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { token, layer, head, all } = state;
  const moves = {
    ArrowLeft: { token: token - 1 },
    ArrowRight: { token: token + 1 },
    Home: { token: 0 },
    End: { token: N - 1 },
    j: { layer: layer + 1 },
    k: { layer: layer - 1 },
    h: { head: head - 1 },
    l: { head: head + 1 },
    m: { all: !all },
  };
  const move = moves[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!move) return;
  event.preventDefault();
  const focused = at("tokens").contains(document.activeElement);
  choose(move);
  const button = at("tokens").children[state.token];
  if (focused) button.focus({ preventScroll: true });
}

function begin() {
  const { layers, heads, embd, inner, parameters } = data.model;
  at("about").textContent =
    `${data.checkpoint}: ${layers} layers of ${heads} heads, ${embd} wide, ${inner} units in each MLP, ` +
    `${parameters.toLocaleString("en")} parameters, ${data.dtype}`;
  at("notes").replaceChildren(...data.notes.map((text) => make("li", "", text)));
  const gap = Math.max(...data.layers.map((layer) => layer.gap)).toPrecision(2);
  at("exact").textContent =
    "Every number is taken from the model's own forward pass and rounded to four digits; the weights of " +
    `attention to 1/${data.steps.toLocaleString("en")}. As a check, weights times values was compared with ` +
    `what each layer's attention really gave: they differ by at most ${gap} of its largest.`;
  data.tokens.forEach((token, place) => {
    const button = make("button", "", label(token));
    button.type = "button";
    button.setAttribute("role", "option");
    button.title = spelled(token);
    const bits = place ? said.bits[place - 1] : 0;
    button.style.setProperty("--surprise", Math.min((bits ?? 99) / 10, 1).toFixed(3));
    button.addEventListener("click", () => choose({ token: place }));
    at("tokens").append(button);
  });
  at("heads").addEventListener("click", (event) => {
    const { left, top, cell } = gridSizes;
    const place = (value, size) => Math.floor(value / size);
    choose({ layer: place(event.offsetY - top, cell), head: place(event.offsetX - left, cell) });
  });
  at("map").addEventListener("pointermove", (event) => {
    const found = cellUnder(event);
    if (found) sayCell(...found);
  });
  at("map").addEventListener("click", (event) => {
    const found = cellUnder(event);
    if (!found) return;
    choose({ token: found[0] });
    sayCell(...found);
  });
  at("one-row").addEventListener("click", () => choose({ all: false }));
  at("all-rows").addEventListener("click", () => choose({ all: true }));
  document.addEventListener("keydown", keyed);
  window.addEventListener("resize", draw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
}

begin();
