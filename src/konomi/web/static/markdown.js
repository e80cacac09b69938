// The guidelines from the server, with the plainest of elements alone.
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
