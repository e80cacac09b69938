// Live runs: their list, alerts, and the page of the selected ones.
import { again, call, delay } from "./api.js";
import { figure, svg } from "./chart.js";
import { finite } from "./format.js";
import { drawing } from "./page.js";
import { alarm, find } from "./status.js";
import { make } from "./text.js";
import { t } from "./words.js";

const EVERY = 3000; // milliseconds between polls
const KEPT = 50; // texts per prompt and run
const runs = new Map(); // id -> {info, data, rows, texts, chosen, style}
const drawPage = drawing(find("page"), () => [...runs.values()].filter((run) => run.chosen));
let tries = 0;

async function poll() {
  if (document.hidden) return void setTimeout(poll, EVERY);
  try {
    let changed = false;
    for (const info of (await call("GET", "/api/runs")).runs) changed = (await follow(info)) || changed;
    tries = 0;
    alarm();
    if (changed || !find("runs").children.length) draw();
    alerts();
    setTimeout(poll, EVERY);
  } catch (failure) {
    alarm(failure.say);
    again(poll, delay(failure, tries++));
  }
}

/** Fetch what is new in a run; returns whether anything is. */
async function follow(info) {
  const run = runs.get(info.id) ?? { rows: [], texts: new Map(), chosen: runs.size < 6, style: `run-${runs.size % 6}` };
  let changed = JSON.stringify(run.info) !== JSON.stringify(info);
  const at = `/api/runs/${encodeURIComponent(info.id)}`;
  const known = (generation) => (generation === undefined ? "" : `&generation=${generation}`);
  // fetch the last update again: its evaluation may have come a moment later
  const last = run.rows.at(-1)?.update ?? 0;
  const { rows, generation } = await call("GET", `${at}/metrics?after=${last - 1}${known(run.generation)}`);
  const restarted = run.generation !== undefined && generation !== run.generation; // it resumed from an earlier checkpoint
  run.generation = generation;
  const seen = run.rows.length;
  run.rows = restarted ? rows : [...run.rows.filter((row) => row.update < last), ...rows];
  for (let more = true; more; ) {
    const page = await call("GET", `${at}/samples?from=${run.next ?? 0}${known(run.printed)}`);
    if (page.from === 0) run.texts.clear();
    for (const sample of page.samples) collect(run.texts, sample);
    changed ||= page.samples.length > 0 || page.next !== (run.next ?? 0);
    [run.next, run.printed] = [page.next, page.generation];
    more = page.samples.length > 0;
  }
  run.samples = [...run.texts.values()].flat();
  changed ||= restarted || run.rows.length !== seen;
  if (changed) run.data = (await call("GET", at)).run;
  run.info = info; // last: a failed fetch is then repeated, and a run is shown once it is complete
  runs.set(info.id, run);
  return changed;
}

/** Keep the first text of each prompt, and the latest ones. */
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
    const line = svg("svg", { viewBox: "0 0 24 8", "aria-hidden": "true" }, svg("path", { class: `line ${run.style}`, d: "M0 4h24" }));
    const status = t("run_value", { status: t(`status_${run.info.status ?? "unknown"}`), update: run.rows.at(-1)?.update ?? 0 });
    return make("li", "", {}, make("label", "check", {}, box, line, make("bdi", "", {}, run.info.name), make("span", "soft", {}, status)));
  });
  find("runs").replaceChildren(...(rows.length ? rows : [make("li", "soft", {}, t("runs_none"))]));
  if (focused !== undefined) find("runs").querySelector(`[data-run="${CSS.escape(focused)}"]`)?.focus();
  drawPage();
}

const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

/** Alerts about a run, in words. `now` in seconds. */
function alertsOf({ info, rows }, now) {
  const messages = [];
  const of = (key) => rows.map((row) => finite(row[key])).filter((value) => value !== null);
  const kl = of("objective/kl").at(-1);
  const { name } = info;
  if (info.status === "running" && finite(info.kl_cap) && kl > 0.8 * info.kl_cap) messages.push(t("alert_cap", { name, kl: figure(kl), cap: figure(info.kl_cap) }));
  const scores = of("ppo/mean_scores");
  if (info.status === "running" && scores.length >= 10) {
    const means = scores.slice(4).map((_, i) => mean(scores.slice(i, i + 5)));
    const best = means.reduce((most, mean) => Math.max(most, mean));
    const last = means.at(-1);
    const noise = Math.sqrt(mean(scores.map((score) => (score - mean(scores)) ** 2)));
    if (best - last > Math.max(noise, 0.1 * Math.abs(best))) messages.push(t("alert_falls", { name, best: figure(best), now: figure(last) }));
  }
  if (info.status === "failed" || info.status === "stopped") messages.push(t("alert_stopped", { name, status: t(`status_${info.status}`), reason: info.reason ?? "" }));
  const times = of("time");
  if (info.status === "running" && times.length >= 2) {
    const steps = times.slice(1).map((time, i) => time - times[i]).sort((a, b) => a - b);
    const silent = now - times.at(-1);
    if (silent > Math.max(120, 10 * steps[steps.length >> 1])) messages.push(t("alert_silent", { name, minutes: Math.round(silent / 60) }));
  }
  return messages;
}

function alerts() {
  const now = [...runs.values()].flatMap((run) => alertsOf(run, Date.now() / 1000));
  const place = find("alerts");
  if (now.join("\n") === [...place.children].map((each) => each.textContent).join("\n")) return; // announced already
  place.replaceChildren(...now.map((text) => make("p", "note", {}, text)));
}

document.addEventListener("words", () => {
  draw();
  find("alerts").replaceChildren();
  alerts();
});
poll();
