// The page of a pipeline's rounds: what each gained over the one before, and how far the model has come.
import { chart } from "./chart.js";
import { count, interval, number, percent, signed } from "./format.js";
import { bdi, section, soft, table } from "./parts.js";
import { make } from "./text.js";
import { t } from "./words.js";

/** The parts of the page; `found`: the rounds that are finished. */
export function rounds({ rounds: found, planned }) {
  const last = found.at(-1);
  const words = last.won ? "round_won" : "round_lost";
  const gap = `${signed(last.difference.mean)} ${interval(last.difference, signed)}`;
  const state = soft(`${t("rounds")} ${last.round} / ${planned}`);
  const verdict = make("p", "verdict", { "data-grade": last.won ? "better" : "unclear" }, `${t(words, { round: last.round })} `, named(last.by), ` ${gap}`);
  return [state, verdict, section("rounds", soft(t("rounds_about")), rowsOf(found)), section("curves", make("div", "curves", {}, ...curvesOf(found)))];
}

/** The judge's name; the score where there is none. */
const named = (judge) => (judge === null ? t("score") : make("span", "", {}, `${t("judge")} `, bdi(judge)));

function rowsOf(found) {
  const heads = ["round", "reports", "difference", "score", "kl_short", "comparisons", "accuracy", "agreement"].map((key) => t(key));
  const sides = ({ before, after }, write) => `${write(before)} → ${write(after)}`;
  const rows = found.map((each) => [
    String(each.round),
    make("span", "", {}, ...Object.entries(each.reports).flatMap(([name, place]) => [make("a", "", { href: place }, name), " "])),
    make("span", "", {}, named(each.by), ` ${signed(each.difference.mean)} ${interval(each.difference, signed)}`),
    sides(each.score, number),
    sides(each.kl, number),
    count(each.learned.comparisons),
    percent(each.learned.accuracy),
    percent(each.learned.agreement),
  ]);
  return table("rounds", heads, rows);
}

/** Each judge's score and the KL from the initial model after each round, 0 being the beginning; and each round's gain. */
function curvesOf(found) {
  const draw = (key, title, points, more = {}) => chart({ key, title, lines: [{ name: "", style: "run-0", points }], x: t("round"), ...more });
  const along = (of) => [{ x: 0, y: of(found[0]).before }, ...found.map((each) => ({ x: each.round, y: of(each).after, ...ends(of(each)) }))];
  const judges = Object.keys(found[0].judges).map((name, i) =>
    draw(`round_judge_${i}`, `${t("judge")} ${name}`, along((each) => each.judges[name]), { unit: t("unit_score"), about: t("round_judge_about") }),
  );
  const gains = found.map(({ round, score: { difference: gap } }) => ({ x: round, y: gap.mean, low: gap.low, high: gap.high }));
  return [
    ...judges,
    draw("round_kl", t("round_kl"), along((each) => each.kl), { unit: t("unit_nats"), zero: true }),
    draw("round_gain", t("round_gain"), gains, { unit: t("unit_score"), about: t("round_gain_about"), zero: true }),
  ];
}

/** The interval of a difference, around what is after it. */
function ends({ before, difference: gap }) {
  return gap && gap.low !== null ? { low: before + gap.low, high: before + gap.high } : {};
}
