// Curves over updates, score against KL, and calibration.
import { chart, figure } from "./chart.js";
import { finite, number } from "./format.js";
import { section, soft, bdi } from "./parts.js";
import { make } from "./text.js";
import { t } from "./words.js";

// words, metric, unit, more
const CURVES = [
  ["score_mean", "ppo/mean_scores", "unit_score", { spread: "ppo/std_scores", about: "score_about" }],
  ["held_out_gain", "eval/difference/mean", "unit_score", { band: ["eval/difference/low", "eval/difference/high"], about: "held_out_gain_about", zero: true }],
  ["kl_short", "objective/kl", "unit_nats", { zero: true }],
  ["kl_coef", "objective/kl_coef", "unit_coef", { zero: true }],
  ["entropy", "objective/entropy", "unit_nats"],
  ["response_length", "tokens/responses_len_mean", "unit_tokens"],
  ["policy_loss", "ppo/loss/policy"],
  ["value_loss", "ppo/loss/value", "", { zero: true }],
  ["train_loss", "sft/loss", "unit_token_nats"],
  ["train_loss", "train/loss"],
  ["train_loss", "dpo/loss"],
  ["eval_loss", "eval/loss"],
  ["held_out_perplexity", "eval/perplexity"],
  ["eval_accuracy", "eval/accuracy"],
  ["eval_margin", "eval/margin", "", { zero: true }],
  ["grad_norm", "sft/grad_norm"],
  ["grad_norm", "dpo/grad_norm"],
];
const NO_CURVE = /^(update|time|episodes|epoch)$/;

/** The curves of the usual metrics, and of all others if `all`. Constant metrics are named below them. */
export function curves(runs, all) {
  const keys = [...new Set(runs.flatMap((run) => run.rows.flatMap((row) => Object.keys(row).filter((key) => finite(row[key]) !== null))))];
  const rest = keys.filter((key) => !NO_CURVE.test(key) && !judgeOf(key) && !CURVES.some(([, other]) => other === key)).sort();
  const judges = keys.filter(judgeOf).map((key, i) => ["judge", key, "unit_score", { about: "judge_about", name: judgeOf(key), key: `judge_${i}` }]);
  const [first, ...others] = CURVES.filter(([, key]) => keys.includes(key));
  const usual = first ? [first, ...judges, ...others] : judges;
  const shown = [...usual, ...(all ? rest : usual.length ? [] : rest.slice(0, 8)).map((key) => [null, key])];
  const drawn = [];
  const constant = [];
  for (const [words, metric, unit, more = {}] of shown) {
    const made = curve(runs, words, metric, unit, more);
    (made instanceof Node ? drawn : constant).push(made);
  }
  if (runs.length === 1) drawn.push(...paths(runs[0], judges), ...calibration(runs[0]));
  const still = constant.flatMap(({ words, name, value }, i) => [i ? " · " : " ", words, ...(name ? [" ", bdi(name)] : []), ` ${number(value)}`]);
  const box = make("input", "", { type: "checkbox", id: "all-curves" });
  box.checked = all;
  return section(
    "curves",
    usual.length && rest.length ? make("label", "check", {}, box, t("all_curves")) : "",
    drawn.length ? make("div", "curves", {}, ...drawn) : constant.length ? "" : soft(t("curves_none")),
    constant.length ? make("p", "soft", {}, `${t("constant")}:`, ...still) : "",
  );
}

const judgeOf = (key) => /^judge\/([^/]+)\/mean$/.exec(key)?.[1];

function curve(runs, words, metric, unit, { spread, band, about, zero = false, name, key = words ?? metric }) {
  const axis = runs.every((run) => run.rows.length && run.rows.every((row) => finite(row.epoch) !== null)) ? "epoch" : "update";
  const lines = runs.map((run) => ({
    name: run.info.name,
    style: run.style,
    points: run.rows
      .filter((row) => metric in row && finite(row[axis]) !== null)
      .map((row) => ({ x: row[axis], y: finite(row[metric]), ...(runs.length === 1 ? bandOf(row, metric, spread, band) : {}) })),
  })).filter((line) => line.points.some((point) => point.y !== null));
  const values = lines.flatMap((line) => line.points.map((point) => point.y)).filter((value) => value !== null);
  if (words && values.length > 1 && new Set(values).size === 1) return { words: t(words), name, value: values[0] };
  const limits = metric === "objective/kl" ? limitsOf(runs, values) : [];
  return chart({
    key,
    title: `${words ? t(words) : metric}${name ? ` ${name}` : ""}`,
    unit: unit && t(unit),
    about: about && (runs.length === 1 || about !== "score_about") ? t(about) : limits.length ? t("kl_about") : "",
    lines,
    named: runs.length > 1,
    x: t(axis),
    whole: axis === "update",
    limits,
    zero,
  });
}

/** The band around a point: a deviation to each side, or an interval. */
function bandOf(row, metric, spread, band) {
  const [y, half] = [finite(row[metric]), spread ? finite(row[spread]) : null];
  if (half) return { half, low: y - half, high: y + half };
  return band ? { low: finite(row[band[0]]), high: finite(row[band[1]]) } : {};
}

/** The KL target, and the cap once the KL is over half of it: further away it would flatten the curve. */
function limitsOf(runs, values) {
  const found = new Map();
  for (const { info } of runs) {
    if (finite(info.kl_target)) found.set(`target ${info.kl_target}`, { name: t("target"), value: info.kl_target });
    if (finite(info.kl_cap) && values.some((value) => value > info.kl_cap / 2)) found.set(`cap ${info.kl_cap}`, { name: t("cap"), value: info.kl_cap });
  }
  return [...found.values()];
}

/** Score, and each judge's score, against KL, with the best of n of the initial model. */
function paths({ rows, data, style }, judges) {
  const compare = data?.compare ?? {};
  const best = compare.best_of_n ?? [];
  const ways = [["path", "ppo/mean_scores", null], ...judges.map(([, metric, , { name }], i) => [`judge_path_${i}`, metric, name])];
  return ways.flatMap(([key, metric, judge]) => {
    const place = (label, x, y) => ({ x, y, label: `${label}: ${figure(x)}, ${figure(y)}` });
    const points = rows.filter((row) => finite(row["objective/kl"]) !== null && finite(row[metric]) !== null).map((row) => place(`${t("update")} ${row.update}`, row["objective/kl"], row[metric]));
    if (!points.length) return [];
    const marks = points.length > 1 ? [{ ...points[0], name: "first" }, { ...points.at(-1), name: "last" }] : [];
    for (const name of ["before", "after"]) {
      const y = finite(judge === null ? compare[name]?.score_mean : compare.judges?.[judge]?.[name]);
      const x = finite(compare[name]?.kl);
      if (x !== null && y !== null) marks.push({ name, x, y });
    }
    const beside = best.map((row) => [row, judge === null ? row.score : row.judges?.[judge]]).filter(([row, y]) => finite(row.kl) !== null && finite(y) !== null);
    const lines = [{ name: "", style, points }];
    if (beside.length) lines.unshift({ name: "", style: "beside", caption: t("best_of"), points: beside.map(([row, y]) => place(`n = ${row.n}`, row.kl, y)) });
    const about = best.length ? t("path_best_about") : judge === null ? t("path_about") : "";
    const title = judge === null ? t("path") : `${t("judge_path")} ${judge}`;
    return [chart({ key, title, unit: t("unit_score"), about, lines, x: `${t("kl_short")} (${t("unit_nats")})`, whole: false, plane: true, marks })];
  });
}

/** Reward, KL, each judge and variety along the line between initial and trained weights; the place of the model is marked. */
export function dial({ data, style }) {
  const { points = [], share, target } = data.dial;
  const judges = Object.keys(points[0]?.judges ?? {}).map((name, i) => [`dial_judge_${i}`, `${t("judge")} ${name}`, "unit_score", (point) => point.judges?.[name]]);
  const shown = [
    ["dial_score", t("score_mean"), "unit_score", (point) => point.score],
    ["dial_kl", t("kl_short"), "unit_nats", (point) => point.kl],
    ...judges,
    ["dial_variety", t("distinct_2"), "", (point) => point.distinct_2],
  ];
  return shown.flatMap(([key, title, unit, of]) => {
    const known = points.map((point) => ({ x: finite(point.share), y: finite(of(point)) })).filter(({ x, y }) => x !== null && y !== null);
    if (!known.length) return [];
    const marks = known.filter(({ x }) => x === share).map((point) => ({ ...point, name: "landed" }));
    const limits = key === "dial_kl" && finite(target) !== null ? [{ name: t("target"), value: target }] : [];
    return [chart({ key, title, unit: unit && t(unit), lines: [{ name: "", style, points: known }], x: t("line_share"), whole: false, limits, marks })];
  });
}

/** Observed share against predicted probability. */
function calibration({ data, style }) {
  const { task, held_out: found } = data?.evaluation ?? {};
  const bins = found?.calibration?.bins ?? [];
  if (!bins.length) return [];
  const low = task === "preference" ? 0.5 : 0;
  const points = bins.map(({ predicted, observed, count }) => ({ x: predicted, y: observed, label: `${figure(predicted)}: ${figure(observed)} (${count})` }));
  return [chart({ key: "calibration", title: t("calibration"), about: t("calibration_about"), lines: [{ name: "", style, points }], x: t("said"), whole: false, plane: true, guide: [[low, low], [1, 1]] })];
}
