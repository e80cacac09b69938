// Runs as they go: curves over each other, alerts, and what the model writes for the same prompts. Reads, and touches nothing.
import { again, call, delay } from "./api.js";
import { beforeAfter } from "./before_after.js";
import { chart, figure, svg } from "./chart.js";
import { alarm } from "./status.js";
import { make, write } from "./text.js";
import { t } from "./words.js";

const EVERY = 3000; // milliseconds between two looks
const KEPT = 50; // texts of one prompt and run
const CURVES = [
  ["curve_score", "ppo/mean_scores"],
  ["curve_kl", "objective/kl"],
  ["curve_coef", "objective/kl_coef"],
  ["curve_entropy", "objective/entropy"],
  ["curve_length", "tokens/responses_len_mean"],
  ["curve_policy_loss", "ppo/loss/policy"],
  ["curve_value_loss", "ppo/loss/value"],
  ["curve_train_loss", "sft/loss"],
  ["curve_train_loss", "train/loss"],
  ["curve_eval_loss", "eval/loss"],
  ["curve_perplexity", "eval/perplexity"],
  ["curve_accuracy", "eval/accuracy"],
];
const find = (id) => document.getElementById(id);
const runs = new Map(); // id -> {info, rows, texts, chosen, number}
let tries = 0;

const number = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);
const chosen = () => [...runs.values()].filter((run) => run.chosen);
const style = (run) => `run-${run.number % 6}`;

async function look() {
  if (document.hidden) return void setTimeout(look, EVERY);
  try {
    let changed = false;
    for (const info of (await call("GET", "/api/runs")).runs) changed = (await follow(info)) || changed;
    tries = 0;
    alarm();
    if (changed || !find("runs").children.length) draw();
    alerts();
    setTimeout(look, EVERY);
  } catch (failure) {
    alarm(failure.say);
    again(look, delay(failure, tries++));
  }
}

/** Ask for what is new of a run: figures, texts, before/after. Whether there is anything. */
async function follow(info) {
  const run = runs.get(info.id) ?? { rows: [], texts: new Map(), chosen: runs.size < 6, number: runs.size };
  let changed = JSON.stringify(run.info) !== JSON.stringify(info);
  run.info = info;
  runs.set(info.id, run);
  const at = `/api/runs/${encodeURIComponent(info.id)}`;
  const known = (generation) => (generation === undefined ? "" : `&generation=${generation}`);
  // the last update is asked for again: its evaluation may have come a moment after it
  const last = run.rows.at(-1)?.update ?? 0;
  const { rows, generation } = await call("GET", `${at}/metrics?after=${last - 1}${known(run.generation)}`);
  const anew = run.generation !== undefined && generation !== run.generation; // it went on from an earlier checkpoint
  run.generation = generation;
  const seen = run.rows.length;
  run.rows = anew ? rows : [...run.rows.filter((row) => row.update < last), ...rows];
  for (let more = true; more; ) {
    const said = await call("GET", `${at}/samples?from=${run.next ?? 0}${known(run.printed)}`);
    if (said.from === 0) run.texts.clear();
    for (const sample of said.samples) collect(run.texts, sample);
    changed ||= said.samples.length > 0 || said.next !== (run.next ?? 0);
    [run.next, run.printed] = [said.next, said.generation];
    more = said.samples.length > 0;
  }
  if (!run.compare && info.status !== "running") {
    run.compare = (await call("GET", `${at}/compare`)).compare;
    changed ||= run.compare !== null;
  }
  return changed || anew || run.rows.length !== seen;
}

/** Of each prompt the first text is kept, and the latest. */
function collect(texts, sample) {
  const all = texts.get(sample.prompt) ?? [];
  texts.set(sample.prompt, all);
  all.push(sample);
  if (all.length > KEPT) all.splice(1, 1);
}

function draw() {
  const focused = document.activeElement?.dataset?.run;
  const rows = [...runs.values()].map((run) => {
    const box = make("input", "", { type: "checkbox", "data-run": run.info.id });
    box.checked = run.chosen;
    box.addEventListener("change", () => {
      run.chosen = box.checked;
      draw();
    });
    const line = svg("svg", { viewBox: "0 0 24 8", "aria-hidden": "true" }, svg("path", { class: `line ${style(run)}`, d: "M0 4h24" }));
    const status = t("run_value", { status: t(`status_${run.info.status ?? "unknown"}`), update: run.rows.at(-1)?.update ?? 0 });
    return make("li", "", {}, make("label", "check", {}, box, line, make("bdi", "", {}, run.info.name), make("span", "soft", {}, status)));
  });
  find("runs").replaceChildren(...(rows.length ? rows : [make("li", "soft", {}, t("runs_none"))]));
  if (focused !== undefined) find("runs").querySelector(`[data-run="${CSS.escape(focused)}"]`)?.focus();
  curves();
  texts();
  const opened = openParts("compare");
  const compared = beforeAfter(chosen());
  find("compare").replaceChildren(...compared);
  find("compare-part").hidden = !compared.length;
  for (const each of find("compare").querySelectorAll("details")) each.open = opened.has(each.dataset.prompt);
}

const openParts = (id) => new Set([...find(id).querySelectorAll("details[open]")].map((each) => each.dataset.prompt));

function curves() {
  const keys = [...new Set(chosen().flatMap((run) => run.rows.flatMap((row) => Object.keys(row))))].filter((key) => !/^(update|time|episodes)$/.test(key));
  const usual = CURVES.filter(([, key]) => keys.includes(key));
  const rest = keys.filter((key) => !CURVES.some(([, other]) => other === key)).sort();
  const shown = [...usual, ...(find("all-curves").checked ? rest : usual.length ? [] : rest.slice(0, 8)).map((key) => [null, key])];
  const made = shown.map(([name, key]) => {
    const lines = chosen().map((run) => ({
      name: run.info.name,
      style: style(run),
      points: run.rows.map((row) => [row.update, number(row[key])]).filter(([x, y]) => number(x) !== null && y !== null),
    }));
    const drawn = lines.filter((line) => line.points.length);
    return drawn.length ? chart(name ? t(name) : key, drawn, key === "objective/kl" ? limits(drawn) : []) : "";
  });
  find("curves").replaceChildren(...(made.some(Boolean) ? made : [make("p", "soft", {}, t("curves_none"))]));
}

/** The target, and the cap as soon as it is near enough to be drawn without flattening the curve. */
function limits(lines) {
  const highest = Math.max(...lines.flatMap((line) => line.points.map(([, y]) => y)));
  const found = new Map();
  for (const { info } of chosen()) {
    if (number(info.kl_target)) found.set(`target ${info.kl_target}`, { name: t("target"), value: info.kl_target });
    if (number(info.kl_cap) && highest > info.kl_cap / 2) found.set(`cap ${info.kl_cap}`, { name: t("cap"), value: info.kl_cap });
  }
  return [...found.values()];
}

const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

/** What a person should know of a run, in words. `now` in seconds. */
export function troubles({ info, rows }, now) {
  const found = [];
  const of = (key) => rows.map((row) => number(row[key])).filter((value) => value !== null);
  const kl = of("objective/kl").at(-1);
  const { name } = info;
  if (info.status === "running" && number(info.kl_cap) && kl > 0.8 * info.kl_cap) found.push(t("alert_cap", { name, kl: figure(kl), cap: figure(info.kl_cap) }));
  const scores = of("ppo/mean_scores");
  if (info.status === "running" && scores.length >= 10) {
    const means = scores.slice(4).map((_, i) => mean(scores.slice(i, i + 5)));
    const best = Math.max(...means);
    const last = means.at(-1);
    const noise = Math.sqrt(mean(scores.map((score) => (score - mean(scores)) ** 2)));
    if (best - last > Math.max(noise, 0.1 * Math.abs(best))) found.push(t("alert_falls", { name, best: figure(best), now: figure(last) }));
  }
  if (info.status === "failed" || info.status === "stopped") found.push(t("alert_stopped", { name, status: t(`status_${info.status}`), reason: info.reason ?? "" }));
  const times = of("time");
  if (info.status === "running" && times.length >= 2) {
    const steps = times.slice(1).map((time, i) => time - times[i]).sort((a, b) => a - b);
    const silent = now - times.at(-1);
    if (silent > Math.max(120, 10 * steps[steps.length >> 1])) found.push(t("alert_silent", { name, minutes: Math.round(silent / 60) }));
  }
  return found;
}

function alerts() {
  const now = [...runs.values()].flatMap((run) => troubles(run, Date.now() / 1000));
  const place = find("alerts");
  if (now.join("\n") === [...place.children].map((each) => each.textContent).join("\n")) return; // not said twice
  place.replaceChildren(...now.map((text) => make("p", "note", {}, text)));
}

function texts() {
  const prompts = new Set(chosen().flatMap((run) => [...run.texts.keys()]));
  const opened = openParts("texts");
  const made = [...prompts].slice(0, 40).map((prompt) => {
    const head = make("h3");
    write(head, prompt, "", t("empty_text"));
    const ends = [];
    const between = [];
    for (const run of chosen()) {
      const own = (run.texts.get(prompt) ?? []).map((sample) => ({ run, sample }));
      ends.push(...(own.length > 1 ? [own[0], own.at(-1)] : own));
      between.push(...own.slice(1, -1));
    }
    const rest = make("details", "", { "data-prompt": prompt }, make("summary", "", {}, t("texts_between", { count: between.length })));
    rest.open = opened.has(prompt);
    rest.append(...between.map(written));
    return make("section", "written", {}, head, ...ends.map(written), between.length ? rest : "");
  });
  find("texts").replaceChildren(...(made.length ? made : [make("p", "soft", {}, t("texts_none"))]));
}

function written({ run, sample }) {
  const words = make("div", "text");
  write(words, sample.response, "", t("empty_text"));
  const score = number(sample.score) === null ? "" : ` · ${t("scored", { score: figure(sample.score) })}`;
  const about = `${chosen().length > 1 ? `${run.info.name} · ` : ""}${t("at_update", { update: sample.update })}${score}`;
  return make("div", "", {}, make("p", "soft", {}, about), words);
}

find("all-curves").addEventListener("change", curves);
document.addEventListener("words", () => {
  draw();
  find("alerts").replaceChildren();
  alerts();
});
look();
