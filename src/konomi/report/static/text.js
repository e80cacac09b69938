// Untrusted text on a page: text nodes only, and a mark for each invisible, hiding or reordering character.
const ODD = new RegExp(
  [
    // a variation selector belongs to an emoji, a keycap, an ideograph or a Mongolian letter; elsewhere it hides something
    "(?<![\\p{Extended_Pictographic}\\p{Ideographic}])(?<![0-9#*](?=\\ufe0f\\u20e3))[\\ufe00-\\ufe0f]",
    "(?<!\\p{Ideographic})[\\u{e0100}-\\u{e011f}]|[\\u{e0120}-\\u{e01ef}]", // the rest is registered for no ideograph
    "(?<!\\p{Script=Mongolian})[\\u180b-\\u180d\\u180f]",
    // a joiner likewise belongs to emoji and some scripts
    "(?<![\\p{Extended_Pictographic}\\p{Emoji_Modifier}]\\ufe0f?|(?!\\p{Default_Ignorable_Code_Point})\\p{M}|\\p{Script=Arabic})[\\u200c\\u200d]",
    // controls, formats except visible signs of Arabic and the like, lone surrogates, the blank Braille pattern
    "(?![\\t\\n\\u0600-\\u0605\\u06dd\\u070f\\u0890\\u0891\\u08e2\\u{110bd}\\u{110cd}\\u180b-\\u180f\\u200c\\u200d\\ufe00-\\ufe0f\\u{e0100}-\\u{e01ef}])" +
      "[\\p{Cc}\\p{Cf}\\p{Cs}\\p{Default_Ignorable_Code_Point}\\u2028\\u2029\\u2800]",
    "\\u180e",
  ].join("|"),
  "gu",
);
const BLANKS = { " ": "␣", "\n": "⏎", "\t": "⇥", "\u3000": "□" };

/** Make an element: its class, its attributes, its children (strings become text). */
export function make(tag, className = "", attributes = {}, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const code = (character) => `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;

/** Put `text` into `element`, inert and isolated. `lang`: its language, if known. `empty`: shown for a text without visible characters. */
export function write(element, text, lang, empty = "") {
  text = String(text).replaceAll("\r\n", "\n");
  const end = /[ \n\t\u3000]*$/.exec(text);
  const parts = [];
  let start = 0;
  for (const odd of text.slice(0, end.index).matchAll(ODD)) {
    parts.push(text.slice(start, odd.index), make("span", "code", {}, code(odd[0])));
    start = odd.index + odd[0].length;
  }
  parts.push(text.slice(start, end.index));
  if (!text.trim() && empty) parts.push(make("span", "code", {}, empty));
  for (const [run] of end[0].matchAll(/(.)\1*/gsu)) parts.push(make("span", "code", {}, BLANKS[run[0]] + (run.length > 1 ? `×${run.length}` : "")));
  element.replaceChildren(...parts);
  const known = lang || (/[\u3041-\u30ff]/.test(text) ? "ja" : ""); // otherwise no language: it may be any
  if (known) element.lang = known;
  else element.removeAttribute("lang");
  element.dir = "auto";
}
