// A chart as SVG: lines, bands, marks, limits, and the values under the pointer. The style sheet has the colours.
import { make, write } from "./text.js";
import { language, t } from "./words.js";

const WIDTH = 360, HEIGHT = 222, LEFT = 50, RIGHT = 12, TOP = 14, BOTTOM = 42;

/** An SVG element with its attributes and children. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A figure with about three digits. */
export function figure(value) {
  if (typeof value !== "number" || !Number.isFinite(value)) return "–";
  return new Intl.NumberFormat(language(), { maximumSignificantDigits: 3 }).format(value).replace("-", "−");
}

/** About five round values between two ends, in steps of 1, 2 or 5 times a power of ten. */
export function ticks(low, high, whole = false) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= 0.999 * rough);
  if (whole) step = Math.max(1, step);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step + 0); // and never −0
  return found;
}

/** The ends of an axis, extended by the share `room`. A single value is in the middle. */
function range(values, whole, room = 0) {
  const low = values.reduce((a, b) => Math.min(a, b));
  const high = values.reduce((a, b) => Math.max(a, b));
  const alone = high - low <= 1e-9 * Math.max(Math.abs(low), Math.abs(high));
  const beyond = !alone ? room * (high - low) : whole || low === 0 ? 0.5 : Math.abs(low) / 10;
  return [low - beyond, high + beyond];
}

const banded = ({ low, high }) => low != null && high != null;

/** The runs of points between two gaps: a gap is a point whose y is null. */
function unbroken(points) {
  const found = [[]];
  for (const point of points) point.y === null ? found.push([]) : found.at(-1).push(point);
  return found.filter((part) => part.length);
}

/**
 * @param {object} of the chart
 *   key, title, unit, about: its name in data-chart, its words
 *   lines: [{name, style, points: [{x, y, low?, high?, half?, label?}]}]; `low`, `high`: of a band around y, as y ± `half`;
 *     `label`: of the point under the pointer
 *   named: show a line's name before its values
 *   x: words of the horizontal axis; whole: integers only; plane: the pointer shows the nearest point overall, not that of each line
 *   limits: [{name, value}] lines across; guide: [[x, y], [x, y]]; marks: [{name, x, y}]; zero: 0 is on the vertical axis
 */
export function chart({ key, title, unit = "", about = "", lines, named = false, x: xWords, whole = true, plane = false, limits = [], guide = [], marks = [], zero = false }) {
  const seen = lines.map((line) => ({ ...line, known: line.points.filter((point) => point.y !== null) }));
  const all = [...seen.flatMap((line) => line.known), ...marks, ...guide.map(([x, y]) => ({ x, y }))];
  const heights = all.flatMap((point) => (banded(point) ? [point.low, point.high] : [point.y]));
  const room = plane && !guide.length ? 0.08 : 0; // for the words beside marks, which need more above and below
  const [x0, x1] = range([...all.map(({ x }) => x), ...(room ? [0] : [])], whole, room);
  const [y0, y1] = range([...heights, ...limits.map(({ value }) => value), ...(zero ? [0] : [])], false, 2 * room);
  const px = (x) => LEFT + ((x - x0) / (x1 - x0)) * (WIDTH - LEFT - RIGHT);
  const py = (y) => HEIGHT - BOTTOM - ((y - y0) / (y1 - y0)) * (HEIGHT - BOTTOM - TOP);
  const at = ({ x, y }) => `${px(x).toFixed(1)} ${py(y).toFixed(1)}`;
  const path = (points) => `M${points.map(at).join("L")}${points.length > 1 ? "" : "h.1"}`;
  const value = (line, point) => `${named ? `${line.name} ` : ""}${figure(point.y)}${point.half ? ` ± ${figure(point.half)}` : banded(point) ? ` [${figure(point.low)}, ${figure(point.high)}]` : ""}`;
  const values = plane ? "" : seen.map((line) => value(line, { y: line.known.at(-1).y })).join(", ");
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": values ? t("curve_label", { name: title, values }) : title });
  const words = (x, y, anchor, text, style = "") => drawing.append(svg("text", { x, y, "text-anchor": anchor, class: style }, text));
  for (const y of ticks(y0, y1)) {
    drawing.append(svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: py(y), y2: py(y) }));
    words(LEFT - 6, py(y) + 4, "end", figure(y));
  }
  for (const x of ticks(x0, x1, whole)) words(px(x), HEIGHT - 25, "middle", figure(x));
  words((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "middle", xWords);
  for (const limit of limits) {
    drawing.append(svg("line", { class: "limit", x1: LEFT, x2: WIDTH - RIGHT, y1: py(limit.value), y2: py(limit.value) }));
    words(WIDTH - RIGHT, py(limit.value) - 4, "end", `${limit.name} ${figure(limit.value)}`, "over");
  }
  if (guide.length) drawing.append(svg("path", { class: "limit", d: path(guide.map(([x, y]) => ({ x, y }))) }));
  for (const line of seen) {
    for (const part of unbroken(line.points.map((point) => (banded(point) ? point : { ...point, y: null })))) {
      const around = [...part.map(({ x, high }) => ({ x, y: high })), ...part.toReversed().map(({ x, low }) => ({ x, y: low }))];
      drawing.append(svg("path", { class: `band ${line.style}`, d: `${path(around)}Z` }));
    }
    drawing.append(svg("path", { class: `line ${line.style}`, d: unbroken(line.points).map(path).join("") }));
    const size = line.known.length > 80 ? 0.9 : 2.2;
    for (const point of line.known) drawing.append(svg("circle", { class: `dot ${line.style}`, cx: px(point.x), cy: py(point.y), r: size }));
    if (line.caption && line.known.length) {
      const last = line.known.at(-1);
      words(px(last.x), py(last.y) - 9, px(last.x) > WIDTH / 2 ? "end" : "start", line.caption, "over mark-text");
    }
  }
  for (const { name, x, y } of marks) {
    drawing.append(svg("circle", { class: `mark mark-${name}`, cx: px(x), cy: py(y), r: 4.5 }, svg("title", {}, `${t(name)}: ${figure(x)}, ${figure(y)}`)));
    words(px(x), py(y) + (labelBelow(name, y, marks) ? 17 : -9), px(x) > WIDTH - 40 ? "end" : "middle", t(name), "over mark-text");
  }
  const reading = make("span", "soft reading", {}, values);
  pointer(drawing, seen, { px, py, plane, values, reading, value, xWords });
  const name = make("span");
  write(name, title);
  const head = [name, unit && make("span", "unit", {}, unit), about && make("span", "soft", {}, about)];
  return make("figure", "", { "data-chart": key }, make("figcaption", "", {}, ...head.flatMap((part) => (part ? [part, " "] : [])), reading), drawing);
}

const BESIDE = { first: "before", before: "first", last: "after", after: "last" };

/** Whether a mark's label is below it: the lower of two marks that may be close together. */
function labelBelow(name, y, marks) {
  const other = marks.find((mark) => mark.name === BESIDE[name]);
  return other && other.y !== y ? y < other.y : name === "first" || name === "last";
}

/** Show the values under the pointer: the nearest point along x of each line, or in a plane the nearest point overall. */
function pointer(drawing, lines, { px, py, plane, values, reading, value, xWords }) {
  const here = svg("line", { class: "here", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  drawing.append(here);
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * WIDTH;
    const y = ((event.clientY - box.top) / box.height) * HEIGHT;
    const far = (point) => Math.hypot(px(point.x) - x, plane ? py(point.y) - y : 0);
    const nearer = (a, b) => (far(b) < far(a) ? b : a);
    const nearest = lines.filter((line) => line.known.length).map((line) => line.known.reduce(nearer));
    const at = nearest.reduce(nearer);
    here.setAttribute("x1", px(at.x));
    here.setAttribute("x2", px(at.x));
    here.setAttribute("visibility", "visible");
    reading.textContent = plane ? at.label : `${xWords} ${figure(at.x)}: ${nearest.map((point, i) => value(lines[i], point)).join(", ")}`;
  });
  drawing.addEventListener("pointerleave", () => {
    here.setAttribute("visibility", "hidden");
    reading.textContent = values;
  });
}
