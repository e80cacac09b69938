// A report: the page of one run, with its data inside.
import { drawing, heading } from "./page.js";
import { write } from "./text.js";
import { t } from "./words.js";

const { run, metrics, samples: texts } = JSON.parse(document.getElementById("data").textContent);
const shown = { info: { id: 0, ...run }, data: run, rows: metrics, samples: texts, style: "run-0" };
const sheet = document.getElementById("page");
const drawn = drawing(sheet, () => [shown]);

function show() {
  try {
    write(document.querySelector("h1"), heading(shown));
    drawn();
  } catch {
    sheet.textContent = t("damaged"); // a file of the run holds what konomi does not write
  }
}

document.addEventListener("words", show);
show();
