// The page of runs, live or finished: outcome, curves, texts, machine.
import { figure } from "./chart.js";
import { curves, dial } from "./curves.js";
import { figuresOf, partsOf } from "./evaluation.js";
import { count, difference, interval, number, signed } from "./format.js";
import { article, bdi, details, finding, section, soft, table, text, unit } from "./parts.js";
import { rounds } from "./rounds.js";
import { make } from "./text.js";
import { tiles } from "./tiles.js";
import { language, t } from "./words.js";

const TEXTS_FIRST = 3; // before/after texts at the top of the page
const TEXTS_OPEN = 8; // of each kind, those further down that are shown without a click
const PROMPTS_OPEN = 3; // of those that are answered at several times
const UPDATES = 12; // whose texts are shown, spread over the run
const PROMPTS = 40; // whose texts are shown where runs are compared
const FIGURES = [["score_mean", "unit_score", "score_std"], ["kl", "unit_nats"], ["length", "unit_tokens"], ["distinct_1"], ["distinct_2"], ["repetition"], ["perplexity"]];

/**
 * The parts of the page.
 * @param {{info: object, data: object, rows: object[], samples: object[], style: string}[]} runs
 *   info, data: from described and data_of in konomi.report.page; rows: metrics.jsonl; samples: samples.jsonl
 * @param {boolean} all draw every metric
 */
function page(runs, all) {
  if (runs.length === 1) {
    const [run] = runs;
    if (run.data?.verb === "rounds") return rounds(run.data);
    const drawn = run.data?.verb === "compare" ? "" : curves(runs, all);
    return [...outcome(run), ...guards(run), ...firstTexts(run), ...results(run), ...landing(run), drawn, ...marks(run), ...overTime(run), ...below(run), samples(run), about(run)];
  }
  const each = runs.filter((run) => run.data).map((run) => {
    const name = make("h2", "", {}, bdi(run.info.name));
    const more = [...guards(run), ...firstTexts(run), ...results(run), ...landing(run), ...marks(run), ...overTime(run), ...below(run), about(run)];
    return make("section", "run", { "data-of": run.info.id }, name, ...outcome(run), details(`run ${run.info.id}`, t("everything"), ...more));
  });
  return [curves(runs, all), ...each, byPrompt(runs)];
}

/** The page's heading. */
export function heading({ data }) {
  return t(`title_${data.verb}`, { model: data.model, algorithm: data.algorithm, reward: data.goal, data: data.texts });
}

/** The run's status, verdict and main figures. */
function outcome({ info, data, rows }) {
  if (!data) return [];
  const status = info.status ?? "unknown";
  const state = make("p", "", {}, make("span", "soft", {}, `${t("run")} `, bdi(info.name), " · "), make("span", `status status-${status}`, {}, t(`status_${status}`)));
  if (info.reason) state.append(" ", make("span", "soft", {}, `${t("reason")}: `, bdi(info.reason)));
  return [state, verdict(data), make("section", "tiles", {}, ...tiles({ data, rows }))];
}

function verdict({ verb, compare, evaluation, learned }) {
  const words = compare?.verdict ?? evaluation?.held_out?.verdict;
  if (words) return make("p", "verdict", { "data-grade": words.grade ?? "" }, bdi(words[language()] ?? ""));
  if (verb !== "sft") return "";
  if (!learned?.after) return make("p", "verdict", {}, t("no_evaluation"));
  const values = { before: number(learned.before.perplexity), after: number(learned.after.perplexity), update: learned.update };
  return make("p", "verdict", {}, t(learned.better ? "learned" : "learned_nothing", values));
}

/** The before/after of a run of PPO or DPO, and the evaluation of a reward model or of implicit rewards. */
function results({ data }) {
  const { verb, compare, evaluation } = data ?? {};
  const changed = ["ppo", "compare"].includes(verb) || (verb === "dpo" && compare) ? [beforeAfter(compare)] : [];
  return verb === "reward" || verb === "dpo" ? [...changed, ...figuresOf(evaluation ?? {})] : changed;
}

function beforeAfter(compare) {
  if (!compare) return section("before_after", make("p", "", {}, t("no_compare")));
  const { before = {}, after = {}, difference: gap = {}, judges = {} } = compare;
  const value = (side, key, deviation) => {
    const spread = deviation && side[deviation] != null ? make("span", "whole", {}, `± ${number(side[deviation])}`) : "";
    return make("span", "", {}, `${number(side[key])}${spread && " "}`, spread);
  };
  const rows = FIGURES.map(([key, of, deviation]) => [
    finding(key === "kl" ? "kl_short" : key, of),
    value(before, key, deviation),
    value(after, key, deviation),
    signed(difference(after[key], before[key])),
  ]);
  const judged = Object.entries(judges);
  rows.splice(1, 0, ...judged.map(([name, judge]) => [finding("judge", "unit_score", name), number(judge?.before), number(judge?.after), signed(difference(judge?.after, judge?.before))]));
  const level = make("span", "soft whole", {}, `(${number(100 * (gap.level ?? 0.95)).replace(".00", "")} %)`);
  const change = (found) => [make("b", "", {}, signed(found?.mean)), ` ${interval(found, signed)} `, level.cloneNode(true)];
  return section(
    "before_after",
    soft(t("before_after_about")),
    soft(`${t("prompts")}: ${count(compare.prompts ?? 0)} · ${t("samples_each")}: ${count(compare.samples ?? 0)}`),
    table("before_after", ["metric", "before", "after", "difference"].map((key) => t(key)), rows),
    make("p", "", {}, `${t("difference_of", { name: t("score_mean") })} `, ...change(gap), ["wins", "losses", "ties"].map((key) => ` · ${t(key)} ${count(gap[key])}`).join("")),
    ...judged.map(([name, judge]) => make("p", "", {}, bdi(t("difference_of", { name: `${t("judge")} ${name}` })), " ", ...change(judge?.difference))),
    judged.length ? soft(t("judge_about")) : "",
    soft(t("caution")),
  );
}

/** Where on its line the model has landed, and the line as a dial. */
function landing(run) {
  const found = run.data?.dial;
  if (!found) return [];
  return [section("landing", make("p", "", {}, bdi(found.verdict?.[language()])), soft(t("landing_about")), make("div", "curves", {}, ...dial(run)))];
}

/** The texts of a before/after: the first ones, then further held-out prompts and extra prompts. */
function textGroups({ data }) {
  const all = data?.compare?.texts ?? [];
  const held = all.filter((item) => item.held_out ?? true);
  const extra = all.filter((item) => !(item.held_out ?? true));
  const main = held.length ? held : extra;
  const groups = [[held.length ? "held_out_prompts" : "extra_prompts", main.slice(TEXTS_FIRST)], ...(held.length ? [["extra_prompts", extra]] : [])];
  return { first: main.slice(0, TEXTS_FIRST), groups: groups.filter(([, items]) => items.length) };
}

function firstTexts(run) {
  const { first } = textGroups(run);
  return first.length ? [section("first_texts", soft(t("first_texts_about")), ...first.map(pair))] : [];
}

/** The parts below the curves. */
function below(run) {
  const evaluated = run.data?.evaluation ? partsOf(run.data.evaluation) : [];
  const { groups } = textGroups(run);
  if (!groups.length) return evaluated;
  const parts = groups.flatMap(([key, items]) => {
    const more = items.slice(TEXTS_OPEN);
    const rest = more.length ? details(`${run.info.id} ${key}`, `${t("more_texts")} (${more.length})`, ...more.map(pair)) : "";
    return [make("h3", "", {}, t(key)), ...items.slice(0, TEXTS_OPEN).map(pair), rest];
  });
  return [section("texts", ...parts), ...evaluated];
}

function pair(item) {
  const gap = difference(item.score_after, item.score_before);
  const side = (name) => {
    const head = [`${t(name)} · ${t("score")} ${number(item[`score_${name}`])}`];
    if (name === "after") head.push(" ", make("span", gap > 0 ? "up" : gap < 0 ? "down" : "", {}, `(${signed(gap)})`));
    for (const [judge, scores] of Object.entries(item.judges ?? {})) head.push(" · ", bdi(judge), ` ${number(scores?.[name])}`);
    return make("div", "", {}, make("p", "soft", {}, ...head), text(item[name]));
  };
  return article("pair", soft(t("prompt")), text(item.prompt), make("div", "sides", {}, side("before"), side("after")));
}

/** What the guards saw, and what the run did. */
function guards({ data }) {
  const events = data?.info?.guards ?? [];
  if (!events.length) return [];
  const lines = events.map((event) => make("li", "", { "data-guard": event.guard }, `${t("at_update", { update: event.update })}: `, bdi(event[language()])));
  return [section("guards", soft(t("guards_about")), make("ul", "", {}, ...lines))];
}

/** Metrics outside their healthy range. */
function marks({ data }) {
  const { updates, metrics = [] } = data?.excursions ?? {};
  if (!metrics.length) return [];
  const words = (each) => [bdi(`${each.name}: ${each.count}/${updates}, ${figure(Number(each.worst?.toPrecision(2)))}`), " ", make("span", "whole", {}, `(${healthyRange(each)})`)];
  return [make("section", "marks", {}, make("p", "", {}, t("out_of_range")), make("ul", "", {}, ...metrics.map((each) => make("li", "", {}, ...words(each)))))];
}

/** A healthy range in words. */
function healthyRange({ low, high, of_max_grad_norm: scaled }) {
  const ends = { low: figure(low), high: figure(high) };
  const words = low === null ? t("range_up_to", ends) : high === null ? t("range_from", ends) : t("range_between", ends);
  return scaled ? t("range_of_max_grad_norm", { range: words }) : words;
}

/** What the model wrote to the same held-out prompts at several times. */
function overTime({ info, data }) {
  const times = data?.over_time ?? [];
  if (times.length < 2) return [];
  const parts = times[0].texts.map(({ prompt }, i) => {
    const answers = times.filter(({ texts }) => texts[i]).map(({ update, texts }) => {
      const head = soft(`${update ? t("at_update", { update }) : t("before")} · ${t("score")} ${number(texts[i].score)}`);
      return make("div", "", {}, head, text(texts[i].response));
    });
    return article("over-time", soft(t("prompt")), text(prompt), make("div", "sides times", {}, ...answers));
  });
  const more = parts.slice(PROMPTS_OPEN);
  const rest = more.length ? details(`${info.id} over_time`, `${t("more_texts")} (${more.length})`, ...more) : "";
  return [section("over_time", soft(t("over_time_about")), ...parts.slice(0, PROMPTS_OPEN), rest)];
}

/** Texts of some updates, spread over the run. */
function samples({ info, samples: all }) {
  const updates = [...new Set(all.map((sample) => sample.update))].sort((a, b) => a - b);
  const last = updates.length - 1;
  const shown = last < UPDATES ? updates : [...Array(UPDATES).keys()].map((i) => updates[Math.round((i * last) / (UPDATES - 1))]);
  if (!shown.length) return "";
  const parts = shown.map((update, i) => {
    const texts = all.filter((sample) => sample.update === update).map((sample) => written(sample, true));
    const part = details(`${info.id} update ${i === shown.length - 1 ? "last" : update}`, `${t("update")} ${update}`, ...texts);
    part.open = i === 0 || i === shown.length - 1;
    return part;
  });
  return section("samples", soft(t("samples_about")), ...parts);
}

function written(sample, prompt, about = "") {
  const head = soft(`${about}${t("score")} ${number(sample.score)} · KL ${number(sample.kl)} `);
  head.append(unit("unit_nats"));
  return article("sample", head, make("p", "text", {}, ...(prompt ? [bdi(sample.prompt, "of-prompt"), sample.chat ? "\n\n" : ""] : []), bdi(sample.response)));
}

/** Texts of several runs by prompt: the first, those in between, the latest. */
function byPrompt(runs) {
  const prompts = [...new Set(runs.flatMap((run) => run.samples.map((sample) => sample.prompt)))].slice(0, PROMPTS);
  const parts = prompts.map((prompt) => {
    const ends = [];
    const between = [];
    for (const run of runs) {
      const own = run.samples.filter((sample) => sample.prompt === prompt).map((sample) => written(sample, false, `${run.info.name} · ${t("at_update", { update: sample.update })} · `));
      ends.push(...(own.length > 1 ? [own[0], own.at(-1)] : own));
      between.push(...own.slice(1, -1));
    }
    return make("section", "", {}, make("h3", "", {}, bdi(prompt)), ...ends, between.length ? details(`prompt ${prompt}`, t("texts_between", { count: between.length }), ...between) : "");
  });
  return section("samples", soft(t("texts_by_prompt")), ...(parts.length ? parts : [soft(t("texts_none"))]));
}

/** The run's settings, machine and files. */
function about({ info, data }) {
  if (!data) return "";
  const facts = data.facts.flatMap(([key, value]) => [make("dt", "", {}, t(key)), make("dd", "", {}, bdi(value))]);
  const { commit, dirty } = data.info?.git ?? {};
  if (commit) facts.push(make("dt", "", {}, t("git")), make("dd", "", {}, bdi(commit), dirty ? ` (${t("git_dirty")})` : ""));
  const file = (name, title, content) => details(`${info.id} ${name}`, title, make("pre", "", {}, bdi(JSON.stringify(content, null, 2))));
  return section("about_run", make("dl", "facts", {}, ...facts), file("config", `${t("config")} (config.json)`, data.config), file("run", "run.json", data.info));
}

/** A function that draws `runs` into `place`, which keeps open details open. Also redraws when "all curves" is switched. */
export function drawing(place, runs) {
  let all = false;
  const draw = () => redraw(place, page(runs(), all));
  place.addEventListener("change", ({ target }) => {
    if (target.id !== "all-curves") return;
    all = target.checked;
    draw();
    document.getElementById("all-curves")?.focus();
  });
  return draw;
}

function redraw(place, parts) {
  const before = new Map([...place.querySelectorAll("details")].map((each) => [each.dataset.key, each.open]));
  place.replaceChildren(...parts.filter(Boolean));
  for (const each of place.querySelectorAll("details")) each.open = before.get(each.dataset.key) ?? each.open;
}
