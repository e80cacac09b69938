// Building blocks of the page of runs.
import { make, write } from "./text.js";
import { t } from "./words.js";

/** Untrusted words inside a sentence. */
export function bdi(value, className = "") {
  const element = make("bdi", className);
  write(element, value ?? "");
  return element;
}

/** An untrusted text with its line breaks. */
export function text(value) {
  const element = make("p", "text");
  write(element, value ?? "", "", t("empty_text"));
  return element;
}

export const unit = (key) => make("span", "unit", {}, t(key));
export const soft = (words, tag = "p") => make(tag, "soft", {}, words);
export const article = (kind, ...children) => make("article", `written ${kind}`, {}, ...children);
export const section = (title, ...children) => make("section", "", { "data-part": title }, make("h2", "", {}, t(title)), ...children);
export const details = (key, summary, ...children) => make("details", "", { "data-key": key }, make("summary", "", {}, summary), ...children);

/** The label of a figure: its words, an untrusted name, its unit. */
export function finding(key, of, name) {
  return make("span", "", {}, t(key), ...(name ? [" ", bdi(name)] : []), ...(of ? [" ", unit(of)] : []));
}

/** A table that scrolls if it is too wide. The first cell of a row is its heading; cells are nodes or text. */
export function table(part, heads, rows) {
  const cell = (tag, content, attributes = {}) => make(tag, "", attributes, content);
  const head = make("tr", "", {}, ...heads.map((words) => cell("th", words, { scope: "col" })));
  const body = rows.map(([first, ...rest]) => {
    const cells = rest.map((each) => (each instanceof HTMLTableCellElement ? each : cell("td", each)));
    return make("tr", "", {}, cell("th", first, { scope: "row" }), ...cells);
  });
  const made = make("table", "", { "data-part": part }, make("thead", "", {}, head), make("tbody", "", {}, ...body));
  return make("div", "scroll", { tabindex: "0", role: "region", "aria-label": t(part) }, made);
}
