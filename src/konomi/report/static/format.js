// Figures for people: a dash if missing, and a true minus sign.
const known = (value) => typeof value === "number" && Number.isFinite(value);
export const finite = (value) => (known(value) ? value : null);
const minus = (text) => text.replace("-", "−");

/** Two decimals; three significant digits below 1 and from 100,000 on. */
export function number(value) {
  if (!known(value)) return "–";
  const size = Math.abs(value);
  return minus(size < 1 || size >= 1e5 ? String(Number(value.toPrecision(3))) : value.toFixed(2));
}

export const signed = (value) => (value > 0 ? "+" : "") + number(value);
export const count = (value) => (known(value) ? minus(new Intl.NumberFormat("en").format(value)) : "–");
export const percent = (value) => (known(value) ? minus(`${(100 * value).toFixed(1)} %`) : "–");
/** A difference of shares, in percentage points. */
export const points = (value) => signed(known(value) ? 100 * value : null);

/** The ends of an interval, or nothing. */
export function interval(found, write = number) {
  return known(found?.low) && known(found?.high) ? `[${write(found.low)}, ${write(found.high)}]` : "";
}

/** The value of a figure, whether it has an interval or not. */
export const valueOf = (found) => (found !== null && typeof found === "object" ? found.value : found) ?? null;
export const difference = (a, b) => (known(a) && known(b) ? a - b : null);

/** Seconds as h:mm:ss. */
export function duration(seconds) {
  const all = Math.max(0, Math.round(seconds));
  const two = (value) => String(value).padStart(2, "0");
  return `${Math.floor(all / 3600)}:${two(Math.floor(all / 60) % 60)}:${two(all % 60)}`;
}
