// The main figures of a run as tiles.
import { count, duration, interval, number, percent, points, signed, valueOf } from "./format.js";
import { bdi } from "./parts.js";
import { make } from "./text.js";
import { t } from "./words.js";

function tile(key, value, note = "", name = "") {
  return make("div", "tile", {}, make("span", "soft", {}, t(key), ...(name ? [" ", bdi(name)] : [])), make("b", "", {}, value), make("span", "soft", {}, note));
}

/** The main figures of a run. */
export function tiles({ data, rows }) {
  if (data.verb === "reward") return rewardTiles(data.evaluation ?? {});
  const found = data.verb === "sft" ? learnedTiles(data.learned) : data.verb === "dpo" ? dpoTiles(data) : changeTiles(data.compare, rows);
  if (data.verb === "compare") return found;
  const last = rows.at(-1) ?? {};
  const done = rows.reduce((most, row) => Math.max(most, row.update), 0);
  const episodes = last.episodes === undefined ? "" : `${t("episodes")} ${last.episodes}`;
  found.push(tile("updates", data.planned ? `${done} / ${data.planned}` : String(done), episodes));
  const seconds = ((Date.parse(data.ended) || 1000 * last.time) - Date.parse(data.started)) / 1000;
  if (data.verb === "ppo" && Number.isFinite(seconds)) found.push(tile("duration", duration(seconds)));
  return found;
}

function changeTiles(compare, rows) {
  if (compare) {
    const { before = {}, after = {}, difference: gap = {}, judges = {} } = compare;
    const change = (found) => `${signed(found?.mean)} ${interval(found, signed)}`.trim();
    return [
      tile("score_mean", `${number(before.score_mean)} → ${number(after.score_mean)}`, change(gap)),
      ...Object.entries(judges).map(([name, judge]) => tile("judge", `${number(judge?.before)} → ${number(judge?.after)}`, change(judge?.difference), name)),
      tile("wins", `${count(gap.wins)} / ${(gap.wins ?? 0) + (gap.losses ?? 0) + (gap.ties ?? 0)}`),
      tile("kl_short", number(after.kl), t("unit_nats")),
    ];
  }
  if (!rows.length) return [];
  const ends = rows.length > 1 ? [rows[0], rows.at(-1)] : rows;
  const scores = ends.map((row) => number(row["ppo/mean_scores"])).join(" → ");
  return [tile("score_mean", scores), tile("kl_short", number(rows.at(-1)["objective/kl"]), t("unit_nats"))];
}

function dpoTiles({ compare, evaluation }) {
  const { held_out: found } = evaluation ?? {};
  const made = compare ? changeTiles(compare, []) : [];
  if (found) made.push(tile("accuracy", percent(valueOf(found.accuracy)), interval(found.accuracy, percent)), tile("comparisons", count(found.comparisons)));
  return made;
}

function learnedTiles(learned) {
  if (!learned) return [];
  const sides = [learned.before, learned.after && learned.model].filter(Boolean);
  return [["perplexity", "held_out_perplexity"], ["loss", "eval_loss"]].map(([key, label]) => tile(label, sides.map((side) => number(side[key])).join(" → ")));
}

function rewardTiles({ task, held_out: found, truth }) {
  const made = [];
  if (found && Object.keys(found).length) {
    const add = (key, value, write, note = interval(value, write)) => made.push(tile(key, write(valueOf(value)), note));
    if (task === "preference") {
      add("accuracy", found.accuracy, percent);
      add("ceiling", found.agreement?.ceiling, percent, found.agreement ? undefined : t("no_overlap"));
      if (found.baselines?.text) add("text_baseline", found.baselines.text.accuracy, percent, `${t("ahead")} ${points(valueOf(found.baselines.text.difference))}`);
      add("longer_wins", found.longer?.accuracy, percent, `${t("ahead")} ${points(valueOf(found.longer?.difference))}`);
      add("comparisons", found.comparisons, count, found.train_comparisons == null ? "" : `${t("of_training")} ${count(found.train_comparisons)}`);
    } else if (task === "classification") {
      add("accuracy", found.accuracy, percent);
      add("macro_f1", found.macro_f1, percent);
      add("majority", found.majority?.accuracy, percent, bdi(found.majority?.label ?? ""));
      add("text_count", found.texts, count);
    } else if (task === "score") {
      for (const key of ["pearson", "spearman", "r2"]) add(key, found[key], number);
      add("text_count", found.texts, count);
    }
  }
  if (valueOf(truth?.accuracy) !== null) made.push(tile("truth_accuracy", percent(valueOf(truth.accuracy)), interval(truth.accuracy, percent)));
  return made;
}
