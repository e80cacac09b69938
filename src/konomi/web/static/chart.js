// One chart: several lines over the updates, drawn as SVG. Colours and dashes are the style sheet's.
import { language, t } from "./words.js";
import { make } from "./text.js";

const WIDTH = 360, HEIGHT = 222, LEFT = 50, RIGHT = 12, TOP = 12, BOTTOM = 42;

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

/** Round values between two ends, about five of them: steps of 1, 2, 5 times a power of ten. */
export function ticks(low, high, whole = false) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= 0.999 * rough);
  if (whole) step = Math.max(1, step);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step + 0); // and never −0
  return found;
}

function open(low, high, whole) {
  if (high - low > 1e-9 * Math.max(Math.abs(low), Math.abs(high))) return [low, high];
  const room = whole || low === 0 ? 0.5 : Math.abs(low) / 10;
  return [low - room, high + room];
}

/**
 * @param {string} name of the chart
 * @param {{name: string, style: string, points: [number, number][]}[]} lines update and value, ascending
 * @param {{name: string, value: number}[]} limits lines across
 */
export function chart(name, lines, limits) {
  const points = lines.flatMap((line) => line.points);
  const heights = [...points.map(([, y]) => y), ...limits.map(({ value }) => value)];
  const [x0, x1] = open(Math.min(...points.map(([x]) => x)), Math.max(...points.map(([x]) => x)), true);
  const [y0, y1] = open(Math.min(...heights), Math.max(...heights), false);
  const px = (x) => LEFT + ((x - x0) / (x1 - x0)) * (WIDTH - LEFT - RIGHT);
  const py = (y) => HEIGHT - BOTTOM - ((y - y0) / (y1 - y0)) * (HEIGHT - BOTTOM - TOP);
  const values = lines.map((line) => `${line.name} ${figure(line.points.at(-1)[1])}`).join(", ");
  const label = t("curve_label", { name, values });
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
  for (const y of ticks(y0, y1)) {
    drawing.append(svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: py(y), y2: py(y) }));
    drawing.append(svg("text", { x: LEFT - 5, y: py(y) + 4, "text-anchor": "end" }, figure(y)));
  }
  for (const x of ticks(x0, x1, true)) drawing.append(svg("text", { x: px(x), y: HEIGHT - 25, "text-anchor": "middle" }, String(x)));
  drawing.append(svg("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, t("update")));
  for (const { name, value } of limits) {
    drawing.append(svg("line", { class: "limit", x1: LEFT, x2: WIDTH - RIGHT, y1: py(value), y2: py(value) }));
    drawing.append(svg("text", { x: WIDTH - RIGHT, y: py(value) - 3, "text-anchor": "end" }, `${name} ${figure(value)}`));
  }
  for (const { style, points } of lines) {
    const path = points.map(([x, y], i) => `${i ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join("");
    drawing.append(svg("path", { class: `line ${style}`, d: points.length > 1 ? path : `${path}h.1` }));
  }
  const here = svg("line", { class: "here", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  drawing.append(here);
  const reading = make("span", "soft", {}, values);
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const x = x0 + ((((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT)) * (x1 - x0);
    const nearest = lines.map((line) => line.points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a)));
    const at = nearest.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a))[0];
    here.setAttribute("x1", px(at));
    here.setAttribute("x2", px(at));
    here.setAttribute("visibility", "visible");
    reading.textContent = `${t("at_update", { update: at })}: ${nearest.map(([, y], i) => `${lines[i].name} ${figure(y)}`).join(", ")}`;
  });
  drawing.addEventListener("pointerleave", () => {
    here.setAttribute("visibility", "hidden");
    reading.textContent = values;
  });
  return make("figure", "", {}, make("figcaption", "", {}, name, " ", reading), drawing);
}
