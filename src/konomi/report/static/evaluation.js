// The evaluation of a reward model: figures on held-out data with intervals, by part, and texts.
import { svg } from "./chart.js";
import { count, interval, number, percent, points, valueOf } from "./format.js";
import { article, bdi, section, soft, table } from "./parts.js";
import { make } from "./text.js";
import { t } from "./words.js";

const TEXTS_SHOWN = 5; // with the best scores, and as many with the worst
const CALIBRATION = [["ece", "calibration.ece", number], ["log_loss", "calibration.log_loss", number], ["brier", "calibration.brier", number]];
// task -> words, path in the result, format
const BY_TASK = {
  preference: [
    ["accuracy", "accuracy", percent],
    ["margin", "margin", number],
    ["longer_wins", "longer.accuracy", percent],
    ["ahead_of_longer", "longer.difference", points],
    ["text_baseline", "baselines.text.accuracy", percent],
    ["ahead_of_text", "baselines.text.difference", points],
    ["network_alone", "baselines.network.accuracy", percent],
    ["ahead_of_network", "baselines.network.difference", points],
    ["tau", "tau", number],
    ["top_1", "top_1", percent],
    ["top_1_chance", "top_1.chance", percent],
    ["agreement", "agreement.share", percent],
    ["ceiling", "agreement.ceiling", percent],
    ["below_ceiling", "agreement.below", points],
    ...CALIBRATION,
    ["length_overall", "length_correlation.overall.spearman", number],
    ["length_within", "length_correlation.within_prompt.spearman", number],
  ],
  score: [["pearson", "pearson", number], ["spearman", "spearman", number], ["r2", "r2", number], ["mse", "mse", number]],
  classification: [
    ["accuracy", "accuracy", percent],
    ["macro_f1", "macro_f1", percent],
    ["majority", "majority.accuracy", percent],
    ["ahead_of_majority", "majority.difference", points],
    ...CALIBRATION,
  ],
  truth: [["accuracy", "accuracy", percent], ["text_baseline", "baselines.text.accuracy", percent], ["ahead_of_text", "baselines.text.difference", points], ["network_alone", "baselines.network.accuracy", percent], ["tau", "tau", number], ["top_1", "top_1", percent], ["top_1_chance", "top_1.chance", percent], ["pearson", "pearson", number], ["spearman", "spearman", number]],
};
const at = (found, path) => path.split(".").reduce((part, key) => part?.[key], found);
const filled = (found) => found && Object.keys(found).length > 0;

/** The figures of eval.json. */
export function figuresOf({ task, held_out: found, train, truth }) {
  if (!filled(found)) return [section("trust", make("p", "", {}, t("no_eval")))];
  const heads = ["metric", "held_out", "interval"].map((key) => t(key));
  const trust = section(
    "trust",
    table("trust", filled(train) ? [...heads, t("training")] : heads, figures(task, found, train)),
    soft(t(found.confusion?.length ? "trust_texts_about" : "trust_about")),
  );
  const against = filled(truth) ? [section("truth", soft(t("truth_about")), table("truth", heads, figures("truth", truth)))] : [];
  return [trust, ...against];
}

/** Its parts, its confusion table and its texts. */
export function partsOf({ held_out: found, texts }) {
  return [...byPart(found ?? {}), ...confusion(found ?? {}), ...scored(texts)];
}

function figures(task, found, train) {
  const rows = (BY_TASK[task] ?? []).filter(([, path]) => valueOf(at(found, path)) !== null);
  return rows.map(([key, path, write]) => {
    const value = at(found, path);
    return [t(key), write(valueOf(value)), interval(value, write), ...(filled(train) ? [write(valueOf(at(train, path)))] : [])];
  });
}

/** Accuracy by part of the data. */
function byPart(found) {
  const parts = ["by_length", "by_length_difference", "by_source"].filter((key) => found[key]?.length);
  if (!parts.length) return [];
  const heads = (key) => [...[key, "comparisons", "prompts", "accuracy", "interval"].map((each) => t(each)), "0 – 100 %"];
  const name = (row) => (row.from === undefined ? (row.source == null ? t("no_source") : bdi(row.source)) : `${row.from} – ${row.to}`.replaceAll("-", "−"));
  const row = (each) => [name(each), count(each.comparisons), count(each.prompts), percent(valueOf(each.accuracy)), interval(each.accuracy, percent), span(each.accuracy)];
  return [section("accuracy_by_part", ...parts.flatMap((key) => [make("h3", "", {}, t(key)), soft(t(`${key}_about`)), table(key, heads(key), found[key].map(row))]))];
}

/** An accuracy and its interval on a line from 0 to 100 %. */
function span(accuracy) {
  const drawing = svg("svg", { class: "span", viewBox: "0 0 100 10", "aria-hidden": "true" }, svg("line", { class: "grid", x1: 50, x2: 50, y1: 0, y2: 10 }));
  if (accuracy?.low != null) drawing.append(svg("line", { class: "reach", x1: 100 * accuracy.low, x2: 100 * accuracy.high, y1: 5, y2: 5 }));
  if (valueOf(accuracy) !== null) drawing.append(svg("circle", { class: "value", cx: 100 * valueOf(accuracy), cy: 5, r: 2.5 }));
  return drawing;
}

function confusion({ labels = [], confusion: counts = [], classes = [] }) {
  if (!counts.length) return [];
  const rows = counts.map((row, i) => [bdi(labels[i]), ...row.map((each, j) => make("td", i === j ? "hit" : "", {}, count(each)))]);
  const heads = [t("class"), ...["text_count", "precision_of_class", "recall"].map((key) => t(key)), "F1"];
  const shares = classes.map((each) => [bdi(each.label), count(each.count), percent(each.precision), percent(each.recall), percent(each.f1)]);
  return [section("confusion", soft(t("confusion_about")), table("confusion", ["", ...labels.map((label) => bdi(label))], rows), make("h3", "", {}, t("classes")), table("classes", heads, shares))];
}

/** The texts with the best scores, and those with the worst; none in both. */
function scored(texts = []) {
  const sorted = texts.filter((each) => typeof each.score === "number").sort((a, b) => b.score - a.score);
  const half = Math.min(TEXTS_SHOWN, Math.ceil(sorted.length / 2));
  const groups = [["best_texts", sorted.slice(0, half)], ["worst_texts", sorted.slice(half).reverse().slice(0, half)]].filter(([, items]) => items.length);
  if (!groups.length) return [];
  const shown = (each) => article("sample", soft(`${t("score")} ${number(each.score)}`), make("p", "text", {}, bdi(each.prompt, "of-prompt"), each.chat ? "\n\n" : "", bdi(each.response)));
  return [section("scored_texts", soft(t("scored_texts_about")), ...groups.flatMap(([key, items]) => [make("h3", "", {}, t(key)), ...items.map(shown)]))];
}
