// `data` is written by `_page` in report.py: of every run the points [step, value] of its curves, in
// the order of steps.
const runs = data.runs;
const several = runs.length > 1;

// What is drawn, and in which unit; `times` is the unit's size, `dots` are for what is measured rarely.
const CHARTS = [
  {
    id: "loss", title: "Loss", unit: "nats per token", height: 360,
    lines: [{ key: "loss", name: "training" }, { key: "val_loss", name: "validation", dots: true }],
  },
  { id: "lr", title: "Learning rate", unit: "", lines: [{ key: "lr", name: "rate" }] },
  { id: "norm", title: "Gradient norm", unit: "", lines: [{ key: "grad_norm", name: "norm" }] },
  {
    id: "speed", title: "Throughput", unit: "tokens/s",
    lines: [{ key: "tokens_per_second", name: "tokens/s" }],
  },
  {
    id: "use", title: "Use of the device's peak", unit: "%", times: 100,
    lines: [{ key: "mfu", name: "% of peak" }],
  },
  {
    id: "memory", title: "Memory, the most so far", unit: "GB", times: 1e-9,
    lines: [{ key: "peak_memory", name: "GB of memory" }],
  },
].filter((chart) => chart.id === "loss" || runs.some((run) => run.series[chart.lines[0].key].length));

// What is read at a step: all that is drawn, and bits per byte.
const READ = CHARTS.flatMap((chart) => chart.lines.map((line) => ({ ...line, times: chart.times ?? 1 })));
READ.splice(2, 0, { key: "val_bits_per_byte", name: "bits per byte", times: 1 });

const HUES = 6;
const KEPT = `report ${location.pathname}`; // under this name a page finds what was chosen before
const logged = runs.flatMap((run) => [...run.series.loss, ...run.series.val_loss]);
const steps = [...new Set(logged.map((point) => point[0]))].sort((a, b) => a - b);

// What is chosen: the place of a step in `steps`, the axis, and the runs that are not drawn.
const state = { place: steps.length - 1, log: false, hidden: new Set() };

// Small tools -------------------------------------------------------------------------------------

/** A text in which what has no sign, or turns the direction of writing, is spelled out. */
function plain(text) {
  const spelled = (c) => `\\u{${c.codePointAt(0).toString(16)}}`;
  return text.replace(/[\p{Cc}\p{Cf}\p{Cs}\u2028\u2029]/gu, (c) => ("\n\t".includes(c) ? c : spelled(c)));
}

/** A number of five digits or so. */
function number(value) {
  const size = Math.abs(value);
  if (value && (size < 0.001 || size >= 1e9)) return value.toExponential(2).replace("e+", "e");
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return value.toFixed(size >= 100 ? 1 : size >= 10 ? 2 : size >= 0.1 ? 4 : 5);
}

/** A number of an axis: without zeros behind it. */
function tick(value) {
  const size = Math.abs(value);
  if (value && (size < 0.001 || size >= 1e7)) {
    return value.toExponential(1).replace(".0e", "e").replace("e+", "e");
  }
  return Number(value.toPrecision(6)).toLocaleString("en", { maximumFractionDigits: 6 });
}

/** Round numbers between two others, about `count` of them. */
function between(low, high, count, whole = false) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  let unit = [1, 2, 5, 10].find((n) => n * power >= rough) * power;
  if (whole) unit = Math.max(1, unit);
  const first = Math.ceil(low / unit);
  return Array.from({ length: Math.floor(high / unit) - first + 1 }, (_, n) => (first + n) * unit);
}

/** Round numbers of a logarithmic axis, about `count` of them. */
function powers(low, high, count) {
  const decades = Math.log10(high / low);
  const factors = 3 * decades > 1.2 * count ? [1] : [1, 2, 5];
  const every = Math.ceil(decades / count);
  const found = [];
  for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power += every) {
    found.push(...factors.map((n) => n * 10 ** power));
  }
  return found.filter((value) => value >= low && value <= high);
}

/** The place of the last point at or before a step; -1 before the first. */
function placeOf(points, step) {
  let [low, high] = [0, points.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] <= step) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** The place in `steps` of a step or, where there is none, of the one before. */
const placeOfStep = (step) => Math.max(0, placeOf(steps.map((one) => [one]), step));

/** The point that counts at a step; undefined before the first, and when the run has ended. */
function pointAt(run, key, step) {
  return step > run.last ? undefined : run.series[key][placeOf(run.series[key], step)];
}

const chosenStep = () => steps[state.place];
const drawn = () => runs.filter((run) => !state.hidden.has(run.name));
const look = (run) => `hue-${run.number % HUES}${run.number >= HUES ? " dashed" : ""}`;

/** How a line of a chart is coloured: by its run or, of a single run, by what it is. */
function lineLook(run, line) {
  return several ? look(run) : `hue-${line.dots ? 1 : 0}`;
}

// Curves ------------------------------------------------------------------------------------------

/** From values to places on the screen. */
function scale(low, high, from, to, log) {
  const f = log ? (value) => Math.log(Math.max(value, low)) : (value) => value;
  const width = f(high) - f(low) || 1;
  return (value) => from + ((f(value) - f(low)) / width) * (to - from);
}

/** The lowest and highest of the values, with some room or from zero on, and whether they need a
 * logarithmic axis. */
function range(values, zero) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (low > high) return [0, 1, false];
  const middle = values.slice().sort((a, b) => a - b)[values.length >> 1];
  if (low > 0 && high > 20 * middle) return [low / 1.2, high * 1.2, true];
  const room = (high - low) * 0.05 || Math.abs(high) * 0.1 || 1;
  return [zero && low >= 0 && low < 0.4 * high ? 0 : low - room, high + room, false];
}

function drawChart(chart) {
  const svg = at(chart.id);
  const [width, height] = [svg.clientWidth || 560, chart.height ?? 200];
  const [left, right, top, floor] = [62, width - 12, 22, height - 36];
  const times = chart.times ?? 1;
  const values = [];
  for (const run of drawn()) {
    for (const line of chart.lines) for (const p of run.series[line.key]) values.push(p[1] * times);
  }
  const [low, high, log] = range(values, chart.id !== "loss");
  const alone = steps.length < 2;
  const start = alone ? (steps[0] ?? 1) - 1 : steps[0];
  const first = state.log ? Math.max(start, 1) : start;
  const last = alone ? first + 2 : steps[steps.length - 1];
  const x = (chart.x = scale(first, last, left, right, state.log));
  const y = (chart.y = scale(low, high, floor, top, log));
  const shapes = [];
  const add = (kind, attributes, text) => shapes.push(shape(kind, attributes, text));

  for (const value of (log ? powers : between)(low, high, height / 60)) {
    add("line", { class: "grid", x1: left, x2: right, y1: y(value), y2: y(value) });
    add("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, tick(value));
  }
  const columns = (right - left) / 70;
  for (const step of state.log ? powers(first, last, columns) : between(first, last, columns, true)) {
    add("line", { class: "grid", x1: x(step), x2: x(step), y1: floor, y2: floor + 4 });
    const anchor = x(step) > right - 20 ? "end" : "middle";
    add("text", { x: x(step), y: floor + 18, "text-anchor": anchor }, tick(step));
  }
  add("text", { x: (left + right) / 2, y: height - 4, "text-anchor": "middle" }, "step");
  const unit = [chart.unit, log ? "logarithmic" : ""].filter(Boolean).join(", ");
  add("text", { x: 0, y: 12 }, unit);

  if (chart.id === "loss") {
    for (const run of drawn()) {
      for (const mark of run.marks) {
        add("line", { class: "mark", x1: x(mark.step), x2: x(mark.step), y1: top, y2: floor });
      }
    }
  }
  for (const run of drawn()) {
    for (const line of chart.lines) shapes.push(...curve(run, line, x, y, times));
  }
  chart.cursor = shape("g", { class: "cursor" });
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren(...shapes, chart.cursor);
}

/** A run's line as shapes: a path, and dots where points are few. */
function curve(run, line, x, y, times) {
  const points = run.series[line.key].map((p) => [x(p[0]).toFixed(1), y(p[1] * times).toFixed(1)]);
  const faint = several && line.key === "loss" ? " faint" : "";
  const name = lineLook(run, line);
  const shapes = [];
  const d = `M${points.map((point) => point.join(",")).join("L")}`;
  if (points.length > 1) shapes.push(shape("path", { class: name + faint, d }));
  if (points.length === 1 || (line.dots && points.length < 60)) {
    points.forEach(([cx, cy]) => shapes.push(shape("circle", { class: name, cx, cy, r: 3 })));
  }
  return shapes;
}

/** Moves the line of the chosen step, and its dots. */
function drawCursor(chart) {
  if (!steps.length) return;
  const x = chart.x(chosenStep());
  const shapes = [shape("line", { x1: x, x2: x, y1: 22, y2: (chart.height ?? 200) - 36 })];
  const said = [];
  for (const run of drawn()) {
    for (const line of chart.lines) {
      const point = pointAt(run, line.key, chosenStep());
      if (!point) continue;
      const [step, value] = [point[0], point[1] * (chart.times ?? 1)];
      const spot = { cx: chart.x(step), cy: chart.y(value), r: 4 };
      shapes.push(shape("circle", { class: lineLook(run, line), ...spot }));
      said.push(`${several ? `${run.short} ` : ""}${line.name} ${number(value)}`);
    }
  }
  chart.cursor.replaceChildren(...shapes);
  const label = `${chart.title} at step ${chosenStep()}: ${said.slice(0, 12).join("; ")}`;
  at(chart.id).setAttribute("aria-label", label);
}

/** The place of the step that is drawn nearest to a pointer. */
function placeUnder(event, chart) {
  const box = event.currentTarget.getBoundingClientRect();
  const there = event.clientX - box.left;
  let best = 0;
  steps.forEach((step, place) => {
    if (Math.abs(chart.x(step) - there) < Math.abs(chart.x(steps[best]) - there)) best = place;
  });
  return best;
}

// Words and tables --------------------------------------------------------------------------------

/** What the value is at the chosen step, and where it was measured if that was before. */
function reading(run, one) {
  const point = pointAt(run, one.key, chosenStep());
  if (!point) return [chosenStep() > run.last ? "ended" : "–", ""];
  const where = point[0] === chosenStep() ? "" : `at ${point[0].toLocaleString("en")}`;
  return [number(point[1] * one.times), where];
}

const read = READ.filter((one) => runs.some((run) => run.series[one.key].length));

function drawValues() {
  const last = state.place === steps.length - 1 ? ", the last" : "";
  at("state").textContent = steps.length
    ? `Step ${chosenStep().toLocaleString("en")}${last}`
    : "No step has been logged yet";
  if (!several) {
    const pairs = make("p", "pairs");
    for (const one of read) {
      const [value, where] = reading(runs[0], one);
      const pair = make("b", "", value);
      pair.dataset.key = one.key;
      const whole = make("span", "", `${one.name} `);
      whole.append(pair, where ? make("small", "", where) : "");
      pairs.append(whole);
    }
    at("values").replaceChildren(pairs);
    return;
  }
  const focused = document.activeElement?.dataset?.run;
  const rows = runs.map((run) => [nameOf(run, "button"), ...read.map((one) => reading(run, one))]);
  const table = make("table");
  fill(table, ["", ...read.map((one) => one.name)], rows, true);
  at("values").replaceChildren(table);
  if (focused) table.querySelectorAll("button")[focused].focus({ preventScroll: true });
}

/** A run's name in its colour; as a button it decides whether the run is drawn. */
function nameOf(run, kind = "span") {
  const element = make(kind, `run ${look(run)}`, run.short);
  element.title = plain(run.name);
  if (kind === "button") {
    element.type = "button";
    element.dataset.run = run.number;
    element.setAttribute("aria-pressed", !state.hidden.has(run.name));
    element.addEventListener("click", () => {
      if (!state.hidden.delete(run.name)) state.hidden.add(run.name);
      draw();
    });
  }
  return element;
}

/** Fills a table: a cell is an element, a text, or a text with a smaller one behind it. */
function fill(table, head, rows, numbers = false) {
  const cell = (kind, content, className = "") => {
    const [first, second] = Array.isArray(content) ? content : [content, ""];
    const element = make(kind, className);
    element.append(first instanceof Node ? first : plain(first));
    if (second) element.append(make("small", "", second));
    return element;
  };
  const line = (cells, kind) => {
    const row = make("tr");
    cells.forEach((one, place) => {
      row.append(cell(place ? kind : "th", one, place && numbers ? "number" : ""));
    });
    row.firstChild.scope = "row";
    return row;
  };
  const [top, body] = [make("thead"), make("tbody")];
  if (head.length) top.append(line(head, "th"));
  body.append(...rows.map((row) => line(row, "td")));
  table.replaceChildren(top, body);
}

function drawTables() {
  const head = () => (several ? ["", ...runs.map((run) => nameOf(run))] : []);
  fill(at("numbers"), head(), data.table);
  const differ = data.settings.filter(([, ...values]) => new Set(values).size > 1);
  const same = data.settings.filter((row) => !differ.includes(row));
  fill(at("settings"), several && differ.length ? head() : [], several ? differ : same);
  at("settings-box").classList.toggle("many", !several);
  at("same").hidden = !several || !same.length;
  at("same").firstChild.textContent = `${same.length} settings that are the same in all`;
  fill(at("same").querySelector("table"), [], same.map((row) => row.slice(0, 2)));
}

// What stands out, and samples --------------------------------------------------------------------

/** Spikes of the loss, where a run went on, and what was no number, in the order of steps. */
function marksOf(run) {
  const found = run.wrong.map(([step, key, value]) => {
    return { step, text: `${key} was ${value}, which is no number` };
  });
  const losses = run.series.loss;
  for (let place = 20; place < losses.length; place++) {
    const before = losses.slice(place - 20, place).map((p) => p[1]);
    const [low, high] = [Math.min(...before), Math.max(...before)];
    const [step, loss] = losses[place];
    const text = `loss ${number(loss)}, a spike: it was ${number(low)} to ${number(high)} before`;
    if (loss > high + (high - low)) found.push({ step, text });
  }
  for (const [step] of run.series.warmup_seconds.slice(1)) {
    found.push({ step, text: "the run was resumed before it" });
  }
  return found.sort((a, b) => a.step - b.step);
}

function drawMarks() {
  const all = runs.flatMap((run) => run.marks.map((mark) => ({ ...mark, run })));
  at("marked").hidden = !all.length;
  at("counted").classList.toggle("both", !all.length);
  const rows = all.slice(0, 100).map(({ run, step, text }) => {
    const where = `${several ? `${run.short}, ` : ""}step ${step.toLocaleString("en")}`;
    const button = make("button", "", `${where}: ${text}`);
    button.type = "button";
    button.addEventListener("click", () => choose(placeOfStep(step)));
    const row = make("li");
    row.append(button);
    return row;
  });
  if (all.length > 100) rows.push(make("li", "why", `and ${all.length - 100} more`));
  at("marks").replaceChildren(...rows);
}

/** The samples of a run as [step, text]; where it went back, what came later counts. */
function samplesOf(run) {
  const parts = run.samples.replace(/\r\n/g, "\n").split(/^## step (\d+)\n\n```\n/m);
  const found = [];
  for (let place = 1; place < parts.length; place += 2) {
    const step = Number(parts[place]);
    while (found.length && found[found.length - 1][0] >= step) found.pop();
    found.push([step, parts[place + 1].replace(/\n```\s*$/, "")]);
  }
  run.cut = parts[0] !== "";
  return found;
}

function drawSamples() {
  const there = [...new Set(drawn().flatMap((run) => run.said.map((sample) => sample[0])))];
  const latest = Math.max(...there.filter((step) => step <= chosenStep()));
  at("sampled").hidden = !runs.some((run) => run.said.length);
  there.sort((a, b) => a - b);
  const every = Math.ceil(there.length / 60);
  const some = there.filter((step, place) => step === latest || place % every === 0);
  const buttons = some.map((step) => {
    const button = make("button", "", step.toLocaleString("en"));
    button.type = "button";
    button.setAttribute("aria-pressed", step === latest);
    button.addEventListener("click", () => choose(placeOfStep(step)));
    return button;
  });
  at("sample-steps").replaceChildren("step", ...buttons);
  const boxes = drawn().filter((run) => run.said.length).map((run) => {
    const sample = run.said[placeOf(run.said, chosenStep())];
    const box = make("div");
    if (several) box.append(nameOf(run));
    const which = sample ? `step ${sample[0]}` : `the first is of step ${run.said[0][0]}`;
    box.append(make("small", "", which));
    if (sample) box.append(make("pre", "", plain(sample[1])));
    return box;
  });
  at("samples").replaceChildren(...boxes);
}

function notes() {
  const found = [];
  for (const run of runs) {
    const name = several ? `${run.short}: ` : "";
    if (run.width > 2) {
      const every = `of every ${run.width.toLocaleString("en")} lines the least and the greatest value`;
      found.push(`${name}there are more lines than a screen has points; ${every} of a curve are kept`);
    }
    if (run.cut) found.push(`${name}earlier samples are left out here; samples.md has all`);
    if (run.wrong.length >= 100) found.push(`${name}many values are no numbers; the last 100 are listed`);
  }
  return found;
}

// Choosing ----------------------------------------------------------------------------------------

/** Chooses a step by its place, within what there is, and shows its values. */
function choose(place) {
  state.place = Math.max(0, Math.min(steps.length - 1, place));
  CHARTS.forEach(drawCursor);
  drawValues();
  drawSamples();
}

function draw() {
  at("linear").setAttribute("aria-pressed", !state.log);
  at("logarithmic").setAttribute("aria-pressed", state.log);
  CHARTS.forEach(drawChart);
  choose(state.place);
}

function setLog(log) {
  state.log = log;
  draw();
}

function keyed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const by = event.shiftKey ? 10 : 1;
  const moves = {
    ArrowLeft: () => choose(state.place - by),
    ArrowRight: () => choose(state.place + by),
    Home: () => choose(0),
    End: () => choose(steps.length - 1),
    l: () => setLog(!state.log),
  };
  const move = moves[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!move) return;
  event.preventDefault();
  move();
}

// A page of a run that goes on --------------------------------------------------------------------

/** Keeps what is chosen for the page that comes in place of this one. The last step stays the last. */
function keep() {
  const step = state.place === steps.length - 1 ? null : chosenStep();
  const chosen = { step, log: state.log, hidden: [...state.hidden], open: at("same").open };
  chosen.top = window.scrollY;
  try {
    sessionStorage.setItem(KEPT, JSON.stringify(chosen));
  } catch {} // a browser may be told to keep nothing
}

/** Takes over what was chosen in the page before, if there was one; how far it was scrolled. */
function recall() {
  let chosen = null;
  try {
    chosen = JSON.parse(sessionStorage.getItem(KEPT));
    sessionStorage.removeItem(KEPT);
  } catch {} // as above
  if (!chosen) return 0;
  state.log = chosen.log;
  state.hidden = new Set(chosen.hidden);
  at("same").open = chosen.open;
  if (chosen.step !== null) state.place = placeOfStep(chosen.step);
  return chosen.top;
}

/** Opens the file anew, unless nobody looks or somebody is marking text. */
function again() {
  if (document.hidden || !getSelection().isCollapsed) return;
  keep();
  location.reload();
}

function begin() {
  const ends = runs.map((run) => run.name.split(run.name.includes("/") ? "/" : "\\").pop());
  runs.forEach((run, place) => {
    const unlike = ends.filter((end) => end === ends[place]).length === 1;
    run.number = place;
    run.short = plain(unlike ? ends[place] : run.name);
    const all = [...run.series.loss.slice(-1), ...run.series.val_loss.slice(-1)];
    run.last = Math.max(...all.map((point) => point[0]));
    run.marks = marksOf(run);
    run.said = samplesOf(run);
  });
  const names = runs.map((run) => run.short).join(" · ");
  const title = runs.length > 4 ? `${runs.length} runs` : several ? names : plain(runs[0].name);
  document.title = at("title").textContent = title;
  const often = `; it is opened anew every ${data.again} s, as the command that draws it goes on`;
  const follows = data.again ? often : "";
  at("about").textContent = `Written by minigpt report, ${data.written}${follows}.`;
  at("notes").replaceChildren(...notes().map((text) => make("li", "", text)));
  const kinds = CHARTS[0].lines.map((line) => {
    const hue = several ? "" : lineLook(runs[0], line);
    return make("span", `${hue} ${line.dots ? "dots" : ""}`, line.name);
  });
  at("kinds").replaceChildren(...kinds);
  for (const chart of CHARTS.slice(1)) {
    const box = make("div");
    const svg = shape("svg", { id: chart.id, class: "chart", role: "img" });
    box.append(make("h2", "", chart.title), svg);
    at("charts").append(box);
  }
  for (const chart of CHARTS) {
    for (const kind of ["pointermove", "pointerdown"]) {
      at(chart.id).addEventListener(kind, (event) => steps.length && choose(placeUnder(event, chart)));
    }
  }
  at("linear").addEventListener("click", () => setLog(false));
  at("logarithmic").addEventListener("click", () => setLog(true));
  document.addEventListener("keydown", keyed);
  window.addEventListener("resize", draw);
  drawTables();
  drawMarks();
  history.scrollRestoration = "manual"; // the browser's own may come too early, or go elsewhere
  const top = recall();
  draw();
  if (top) window.scrollTo(0, top);
  if (data.again) setInterval(again, 1000 * data.again);
}

begin();
