// Somebody's text as it stands on a page: text nodes only, and a mark for each character that hides, reorders or is not seen.
const ODD = new RegExp(
  [
    "[\\0-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u00ad\\u034f\\u061c\\u115f\\u1160\\u17b4\\u17b5\\u180e\\u200b\\u200e\\u200f\\u2028-\\u202e\\u2060-\\u206f" +
      "\\u3164\\ufeff\\uffa0\\ufff9-\\ufffb\\ud800-\\udfff\\u{e0000}-\\u{e007f}]",
    // joiners are a part of emoji and of some scripts; elsewhere they hide
    "(?<![\\p{Extended_Pictographic}\\p{Emoji_Modifier}\\ufe0f\\p{M}\\p{Script=Arabic}])[\\u200c\\u200d]",
  ].join("|"),
  "gu",
);

/** Make an element: its class, its attributes, its children (strings become text). */
export function make(tag, className = "", attributes = {}, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const code = (character) => `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;

/** Put `text` into `element`, inert and isolated. `empty` is shown for a text of no visible character. */
export function write(element, text, lang, empty = "") {
  text = String(text).replaceAll("\r\n", "\n");
  const parts = [];
  let start = 0;
  for (const odd of text.matchAll(ODD)) {
    parts.push(text.slice(start, odd.index), make("span", "code", {}, code(odd[0])));
    start = odd.index + odd[0].length;
  }
  parts.push(text.slice(start));
  if (!text.trim() && empty) parts.push(make("span", "code", {}, empty));
  element.replaceChildren(...parts);
  if (lang) element.lang = lang;
  element.dir = "auto";
}

const ALLOWED = new Set(
  "A B BLOCKQUOTE BR CODE DEL DD DL DT EM H1 H2 H3 H4 H5 H6 HR I LI OL P PRE S STRONG TABLE TBODY TD TH THEAD TR UL".split(" "),
);

/** A copy of HTML from the server with the plainest of elements alone, headings one level lower. */
export function plainHtml(html) {
  const source = new DOMParser().parseFromString(html, "text/html");
  const copy = (node, into) => {
    for (const child of node.childNodes) {
      if (child.nodeType === Node.TEXT_NODE) into.append(child.data);
      else if (child.nodeType !== Node.ELEMENT_NODE || /^(SCRIPT|STYLE|TEMPLATE)$/.test(child.nodeName)) continue;
      else if (!ALLOWED.has(child.nodeName)) copy(child, into);
      else {
        const element = document.createElement(child.nodeName.replace(/^H([1-5])$/, (_, level) => `H${Number(level) + 1}`));
        const address = child.getAttribute("href") ?? "";
        if (child.nodeName === "A" && /^https?:/i.test(address)) {
          element.href = address;
          element.rel = "noreferrer noopener";
          element.target = "_blank";
        }
        if (/[\u3041-\u30ff]/.test(child.textContent)) element.lang = "ja";
        else if (/^(P|H\d|LI)$/.test(child.nodeName)) element.lang = "en";
        copy(child, element);
        into.append(element);
      }
    }
    return into;
  };
  return copy(source.body, document.createDocumentFragment());
}
