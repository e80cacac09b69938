// The before/after of runs: the difference in words, and the texts side by side.
import { figure } from "./chart.js";
import { make, write } from "./text.js";
import { language, t } from "./words.js";

/** @param {{info: object, compare: object | null}[]} runs */
export function beforeAfter(runs) {
  return runs.filter((run) => run.compare).map(({ info, compare }) => {
    const found = compare.difference ?? {};
    const values = Object.fromEntries(["mean", "low", "high", "wins", "losses", "ties"].map((name) => [name, figure(found[name])]));
    const level = Math.round(100 * (found.level ?? 0.95));
    const pairs = (compare.texts ?? []).slice(0, 30).map((each) => {
      const head = make("h4");
      write(head, each.prompt, "", t("empty_text"));
      const sides = ["before", "after"].map((side) => {
        const words = make("div", "text");
        write(words, each[side], "", t("empty_text"));
        const score = t("scored", { score: figure(each[`score_${side}`]) });
        return make("div", "", {}, make("p", "soft", {}, `${t(side)} · ${score}`), words);
      });
      return make("section", "", {}, head, make("div", "sides", {}, ...sides));
    });
    const name = make("h3", "", {}, make("bdi", "", {}, info.name));
    const details = make("details", "", { "data-prompt": `compare ${info.id}` }, make("summary", "", {}, t("compare_texts", { count: pairs.length })), ...pairs);
    return make("section", "written", {}, name, make("p", "", {}, t("compare_value", { ...values, level }), " ", compare.verdict?.[language()] ?? ""), details);
  });
}
