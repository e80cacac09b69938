// The tray at the bottom of the ranking page: the ranks, to be pressed or dropped on, and which card they are for.
import { short } from "./cards.js";
import { make } from "./text.js";
import { t } from "./words.js";

const find = (id) => document.getElementById(id);

/** Make a slot for each rank. @param rate is told the rank that was pressed */
export function slots(count, rate) {
  const made = Array.from({ length: count }, (_, index) => {
    const rank = index + 1;
    const button = make("button", "slot", { type: "button", "data-rank": rank }, make("b", "", {}, String(rank), ...(rank === 1 && count < 5 ? [" ", make("span", "", { "data-t": "best" }, t("best"))] : [])), make("span", "names"));
    button.addEventListener("click", () => rate(rank));
    return button;
  });
  find("slots").replaceChildren(...made);
}

/** Write who has which rank, and whose rank the slots give. */
export function drawSlots(ranking, cards, selected) {
  const name = cards.name(selected);
  find("whom").textContent = t("slots", { name });
  for (const slot of find("slots").children) {
    const rank = Number(slot.dataset.rank);
    const names = ranking.keys.filter((key) => ranking.ranks[key] === rank).map((key) => cards.name(key));
    slot.querySelector(".names").textContent = short(names);
    slot.setAttribute("aria-label", t(names.length ? "slot_filled" : "slot_empty", { rank, names: names.join(" "), selected: name }));
  }
}

// what is focused or scrolled to stays above the tray, however high that is
new ResizeObserver(() => {
  const sticky = getComputedStyle(find("tray")).position === "sticky";
  document.documentElement.style.scrollPaddingBottom = `${(sticky ? find("tray").offsetHeight : 0) + 16}px`;
}).observe(find("tray"));
