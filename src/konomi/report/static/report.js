// A report: the page of one run, whose data is in it.
import { drawing, heading } from "./page.js";
import { write } from "./text.js";
import "./words.js";

const { run, metrics, samples: texts } = JSON.parse(document.getElementById("data").textContent);
const shown = { info: { id: 0, ...run }, data: run, rows: metrics, samples: texts, style: "run-0" };
const drawn = drawing(document.getElementById("page"), () => [shown]);

function show() {
  write(document.querySelector("h1"), heading(shown));
  drawn();
}

document.addEventListener("words", show);
show();
