// One run: where it stands, what happened to it, its curves, results, output and configuration.

import { Curves, ask, runPath } from "./api.js";
import { Chart, redrawWithColours } from "./charts.js";
import { GAP, bar, bytes, duration, el, figure, integer, isNumber, memo, moment, percent, pill, roughDuration, section, table, when } from "./dom.js";
import { icon, markOf } from "./marks.js";
import { drawSamples, drawShards, picturePart } from "./material.js";
import { key, timeSpent, timeline } from "./timeline.js";

const LIVE_MS = 3_000;
const OVER_MS = 30_000;
const POINTS = 400;
const SHOWN_FAULTS = 30;
const SHOWN_ATTEMPTS = 20;
const PHASES = ["data", "augment", "forward", "backward", "reduce", "optimizer", "checkpoint", "observe"];

const CHARTS = [
  { title: "Loss", help: "mean over the global batch; the band holds the least and greatest data step", series: [{ key: "loss", label: "" }] },
  { title: "Loss terms", help: "unweighted", series: [{ key: "terms.scene", label: "scene" }, { key: "terms.scene_instance", label: "scene–instance" }, { key: "terms.instance", label: "instance" }] },
  { title: "Gradient norm", unit: "log", help: "global L2 norm", isLog: true, series: [{ key: "gradient_norm", label: "" }] },
  { title: "Learning rate", series: [{ key: "lr", label: "" }] },
  { title: "Throughput", unit: "images/s", series: [{ key: "images_per_s", label: "" }] },
  { title: "Where a step's time goes", unit: "share", isShare: true, format: (value) => percent(value, 0), series: PHASES.map((name) => ({ key: `phases.${name}`, label: name })) },
  { title: "Spread of the embeddings", help: "std of L2-normalised embeddings × sqrt(dim): about 1 is healthy, 0 is collapse", unit: "1 healthy, 0 collapsed", series: [{ key: "statistics.embedding_std_online", label: "online" }, { key: "statistics.embedding_std_target", label: "target" }] },
  { title: "Sinkhorn residual", unit: "log", help: "largest marginal violation after the last iteration", isLog: true, series: [{ key: "statistics.sinkhorn_residual", label: "" }] },
  { title: "Momentum of the target", help: "1 leaves it as it is", format: (value) => figure(value, 6), series: [{ key: "momentum", label: "" }] },
  { title: "Age of the last checkpoint", help: "what a power cut would cost", format: duration, tick: roughDuration, series: [{ key: "checkpoint_age_s", label: "" }] },
];

const EVALUATIONS = [
  { title: "Nearest neighbours", help: "of frozen features", unit: "ratio", series: [{ key: "top1", label: "top-1" }, { key: "mean_average_precision", label: "mAP" }] },
  { title: "Effective rank", help: "of the features (RankMe); collapse shows here first", series: [{ key: "effective_rank", label: "" }] },
];

const view = { x: "step" };

export function runPage(main, name) {
  document.title = `univip: ${name}`;
  const part = () => el("div", { hidden: true });
  const parts = { head: part(), why: part(), tiles: part(), shards: part(), happened: part(), results: part(), attempts: part(), gpus: part(), samples: part() };
  const curves = curvesPart(name);
  const picture = picturePart(name);
  const log = logPart(name);
  const config = configPart(name);
  main.replaceChildren(parts.head, parts.why, parts.tiles, parts.shards, parts.happened, curves.node, parts.results, parts.attempts, parts.gpus, picture.node, parts.samples, log.node, config.node);
  const draw = {
    head: memo(parts.head, drawHead),
    why: memo(parts.why, drawWhy),
    tiles: memo(parts.tiles, drawTiles),
    shards: memo(parts.shards, drawShards),
    happened: memo(parts.happened, drawHappened),
    results: memo(parts.results, drawResults),
    attempts: memo(parts.attempts, drawAttempts),
    gpus: memo(parts.gpus, drawGpus),
    samples: memo(parts.samples, drawSamples),
  };
  let run = null;
  const page = {
    everyMs: LIVE_MS,
    async refresh() {
      run = await ask(runPath(name));
      page.everyMs = ["running", "queued"].includes(run.state) ? LIVE_MS : OVER_MS;
      draw.head({ run: run.run, state: run.state, stage: run.stage, facts: run.facts });
      draw.why({ state: run.state, cause: run.cause, problem: run.problem, message: run.attempts.at(-1)?.message, unreadable: run.unreadable, damaged: run.damaged_lines });
      draw.tiles(tilesOf(run));
      draw.shards(run.shards);
      drawHappenedFor(run);
      draw.results({ results: run.results, evaluations: run.evaluations });
      draw.attempts({ attempts: run.attempts, state: run.state });
      draw.gpus(run.gpus);
      picture.show(run.picture);
      draw.samples(run.samples);
      await Promise.all([curves.refresh(run), log.refresh(), config.refresh()]);
    },
    close() {
      curves.close();
      observer.disconnect();
    },
  };
  let width = 0;
  const drawHappenedFor = (shown) => {
    // The time of a live run moves the axis; twice a minute is enough.
    const now = shown.state === "running" ? Math.floor(shown.now / 30) * 30 : 0;
    const { attempts, faults, rounds, checkpoints, time_spent, state } = shown;
    draw.happened({ attempts, faults, rounds, checkpoints, time_spent: now ? coarse(time_spent) : time_spent, state, now, width });
  };
  const observer = new ResizeObserver(() => {
    const now = Math.floor(main.clientWidth);
    if (Math.abs(now - width) < 4) return;
    width = now;
    if (run) drawHappenedFor(run);
  });
  width = Math.floor(main.clientWidth);
  observer.observe(main);
  return page;
}

const coarse = (spent) => Object.fromEntries(Object.entries(spent).map(([name, value]) => [name, Math.round(value)]));

function drawHead({ run, state, stage, facts }) {
  const words = [facts.method, facts.num_images ? `${integer(facts.num_images)} photographs` : "", facts.global_batch ? `batch ${integer(facts.global_batch)}` : ""].filter(Boolean).join(" · ");
  return el("div", { class: "head" }, el("h1", {}, run), pill(state, stage), el("span", { class: "quiet" }, words), el("a", { class: "button", href: `${runPath(run)}/report`, target: "_blank", rel: "noopener" }, "Report"));
}

function drawWhy({ state, problem, message, unreadable, damaged }) {
  const lines = [];
  if (["failed", "stopped"].includes(state) && (message || problem)) lines.push(el("pre", { class: "why" }, message || problem));
  if (unreadable.length) lines.push(el("p", { class: "why" }, `cannot be read: ${unreadable.join(", ")}`));
  if (damaged) lines.push(el("p", { class: "why calm" }, `${integer(damaged)} lines of the journal are damaged and left out`));
  return lines.length ? el("div", { role: "alert" }, lines) : null;
}

function tilesOf(run) {
  const isTraining = run.shards_done === null || run.shards_done === undefined;
  const live = run.state === "running";
  const checkpoint = run.checkpoints.at(-1);
  const counts = run.counts;
  const survived = [["rollback", "rollback"], ["restart", "restart"], ["skip", "skipped batch"], ["corruption", "damaged checkpoint"], ["checkpoint_failed", "failed save"]]
    .filter(([kind]) => counts[kind])
    .map(([kind, word]) => `${counts[kind]} ${word}${counts[kind] === 1 ? "" : kind === "skip" ? "es" : "s"}`);
  const spent = run.time_spent;
  const total = Object.values(spent).reduce((sum, value) => sum + value, 0);
  return {
    name: run.run,
    done: run.done,
    target: run.target,
    unit: isTraining ? "data steps" : "images",
    loss: run.loss,
    rate: live ? run.images_per_s : null,
    eta: live && run.eta_s ? Math.round(run.eta_s) : null,
    finish: live && run.eta_s ? Math.round((run.now + run.eta_s) / 60) * 60 : null,
    checkpoint: checkpoint ? { step: checkpoint.data_step, age: live ? Math.round(run.now - checkpoint.time) : null, bytes: checkpoint.bytes } : null,
    faults: counts.step || survived.length ? survived : null,
    useful: total > 0 ? Math.round((1000 * spent.useful) / total) / 1000 : null,
    isOver: !live,
  };
}

function drawTiles(tiles) {
  const tile = (label, value, note) => el("div", { class: "tile" }, el("dt", {}, label), el("dd", {}, value, note ? el("small", {}, note) : null));
  const found = [];
  if (tiles.target) found.push(el("div", { class: "tile wide" }, el("dt", {}, "progress"), el("dd", {}, percent(tiles.done / tiles.target), el("small", {}, `${integer(tiles.done)} of ${integer(tiles.target)} ${tiles.unit}`), bar(tiles.done, tiles.target, "progress"))));
  if (tiles.eta !== null) found.push(tile("time left", duration(tiles.eta), `until ${when(tiles.finish)}`));
  if (tiles.loss !== null && tiles.loss !== undefined) found.push(tile("loss", figure(tiles.loss)));
  if (tiles.rate) found.push(tile("images/s", figure(tiles.rate, 3)));
  if (tiles.checkpoint) found.push(tile("last checkpoint", `step ${integer(tiles.checkpoint.step)}`, [tiles.checkpoint.age === null ? "" : `${duration(tiles.checkpoint.age)} old`, bytes(tiles.checkpoint.bytes)].filter(Boolean).join(", ")));
  if (tiles.faults) found.push(tile("faults survived", tiles.faults.length ? tiles.faults[0] : "none", tiles.faults.slice(1).join(", ")));
  if (tiles.useful !== null) found.push(tile("goodput", percent(tiles.useful), "of the time since it began"));
  return found.length ? el("dl", { class: "tiles" }, found) : null;
}

function drawHappened({ width, ...run }) {
  if (!run.attempts.length && !run.faults.length) return null;
  const drawing = timeline(run, Math.max(300, width - 34));
  const spent = timeSpent(run.time_spent);
  const box = section("What happened", drawing, key(run), spent);
  box.append(faultTable(run.faults));
  return box;
}

function faultTable(faults) {
  if (!faults.length) return el("p", { class: "quiet" }, "No fault so far.");
  const grouped = group(faults);
  const rows = (shown) => shown.map((fault) => [
    moment(fault.time),
    el("span", { class: "fault" }, icon(fault.kind), el("span", {}, fault.text, fault.times > 1 ? el("b", {}, ` ×${fault.times}`) : null)),
    fault.data_step === null || fault.data_step === undefined ? "–" : integer(fault.data_step),
    isNumber(fault.steps_lost) ? `${integer(fault.steps_lost)} step${fault.steps_lost === 1 ? "" : "s"}` : "–",
    isNumber(fault.seconds_lost) ? duration(fault.seconds_lost) : "–",
  ]);
  const heads = ["when", "fault", `data step${GAP}`, `work lost${GAP}`, `until past it${GAP}`];
  const box = el("div");
  const show = (count) => {
    const more = grouped.length > count ? el("button", { type: "button", onclick: () => show(Infinity) }, `Show all ${grouped.length}`) : null;
    box.replaceChildren(table(heads, rows(grouped.slice(-count)), `Faults and what each cost, ${faults.length} in all`, "cards"), ...(more ? [more] : []));
  };
  show(SHOWN_FAULTS);
  return box;
}

/** The same small thing again and again is told once. */
function group(faults) {
  const found = [];
  for (const fault of faults) {
    const before = found.at(-1);
    if (before && before.text === fault.text && ["image_failed", "dropped", "checkpoint_failed", "skip", "gpu_error"].includes(fault.kind)) {
      before.times += 1;
      if (isNumber(fault.steps_lost)) before.steps_lost += fault.steps_lost;
    } else found.push({ ...fault, times: 1 });
  }
  return found;
}

function drawResults({ results, evaluations }) {
  if (!results) return null;
  const words = { top1: "kNN top-1", mean_average_precision: "kNN mean average precision", effective_rank: "effective rank", feature_std: "feature std (1 healthy, 0 collapsed)" };
  const { trained = {}, untrained = {} } = results;
  const names = Object.keys(words).filter((name) => name in trained);
  const rows = names.map((name) => [words[name], figure(trained[name]), figure(untrained[name]), isNumber(trained[name]) && isNumber(untrained[name]) ? signed(trained[name] - untrained[name]) : "–"]);
  const note = `Data step ${integer(results.checkpoint_data_step)}, ${integer(results.num_images)} photographs, ${integer(results.num_classes)} classes, ${integer(results.neighbours)} neighbours.`;
  return section("What the features are worth", table(["of frozen features", `trained${GAP}`, `untrained${GAP}`, `difference${GAP}`], rows, "Results of the last evaluation", "narrow"), el("p", { class: "quiet" }, note, evaluations.length > 1 ? ` ${evaluations.length} evaluations so far.` : ""));
}

const signed = (value) => `${value > 0 ? "+" : value < 0 ? "−" : ""}${figure(Math.abs(value), 3)}`;

function drawAttempts({ attempts, state }) {
  if (!attempts.length) return null;
  const shown = attempts.slice(-SHOWN_ATTEMPTS);
  const rows = shown.map((each, index) => {
    // Only shards work side by side.
    const mayRun = state === "running" && (index === shown.length - 1 || each.stage.startsWith("shard:"));
    const end = each.ended === null ? (mayRun ? "runs" : "no word of its end") : each.cause || "–";
    return [each.number, each.stage, each.host, each.slurm_job_id || "–", moment(each.started), each.ended === null ? "–" : duration(each.ended - each.started), end];
  });
  const box = section("Attempts", table([`no.${GAP}`, "stage", "host", "SLURM job", "began", `took${GAP}`, "end"], rows, "Attempts", "cards"));
  if (attempts.length > shown.length) box.append(el("p", { class: "quiet" }, `the last ${shown.length} of ${attempts.length}`));
  return box;
}

function drawGpus(nodes) {
  const rows = nodes.flatMap((node) => node.gpus.map((gpu) => [
    moment(node.time),
    `${node.host} (${node.node}): GPU ${gpu.gpu}`,
    isNumber(gpu.busy_ratio) ? percent(gpu.busy_ratio, 0) : "–",
    isNumber(gpu.memory_used_bytes) ? `${bytes(gpu.memory_used_bytes)} of ${bytes(gpu.memory_bytes)}` : "–",
    isNumber(gpu.temperature_celsius) ? `${integer(gpu.temperature_celsius)} °C` : "–",
    isNumber(gpu.power_watts) ? `${integer(gpu.power_watts)} W` : "–",
    [gpu.slowed ? "slowed by heat or want of power" : "", gpu.memory_errors ? `${integer(gpu.memory_errors)} memory errors` : ""].filter(Boolean).join(", ") || "–",
  ]));
  return rows.length ? section("GPUs", table(["read at", "node and GPU", `busy${GAP}`, `memory${GAP}`, `temperature${GAP}`, `power${GAP}`, "what is wrong"], rows, "Newest reading of each GPU", "cards")) : null;
}

function curvesPart(name) {
  let window = null;
  let run = null;
  let charts = null;
  const loader = new Curves(name, [], POINTS);
  const reset = el("button", { type: "button", hidden: true, onclick: () => zoom(null) }, "Whole run");
  const axes = el("div", { class: "chips", role: "radiogroup", "aria-label": "Abscissa" });
  const parts = el("select", { "aria-label": "Part of the run", onchange: () => zoomToEnd(Number(parts.value)) }, [["1", "whole run"], ["0.5", "last half"], ["0.1", "last 10 %"], ["0.01", "last 1 %"]].map(([value, words]) => el("option", { value }, words)));
  const grid = el("div", { class: "charts" });
  const node = section("Curves", el("div", { class: "tools" }, axes, parts, reset, el("span", { class: "quiet hint" }, "drag to zoom, double-click for the whole")), grid);
  node.hidden = true;

  function drawAxes() {
    const all = [["step", "by data step"], ["time", "by time"]];
    const focused = [...axes.children].indexOf(document.activeElement);
    axes.replaceChildren(...all.map(([id, words]) => el("button", { type: "button", role: "radio", "aria-checked": String(view.x === id), tabindex: view.x === id ? 0 : -1, onclick: () => choose(id), onkeydown: (event) => { if (event.key.startsWith("Arrow")) choose(id === "step" ? "time" : "step"); } }, words)));
    if (focused >= 0) axes.children[all.findIndex(([id]) => id === view.x)].focus();
  }

  async function choose(x) {
    view.x = x;
    drawAxes();
    await zoom(null);
  }

  async function zoom(to) {
    window = to;
    parts.value = to ? parts.value : "1";
    reset.hidden = !to;
    await load(true);
  }

  async function zoomToEnd(ratio) {
    if (ratio === 1) return zoom(null);
    await zoom(null);
    const { xs } = loader.data;
    const last = xs.at(-1);
    parts.value = String(ratio);
    window = [last - ratio * (last - xs[0]), last];
    reset.hidden = false;
    return load(true);
  }

  async function load(isForced) {
    const isChanged = await loader.load(view.x, window);
    if (!(isChanged || isForced) || !run) return;
    const data = loader.data;
    node.hidden = !data.records;
    const span = window ?? (data.xs.length ? [Math.min(data.xs[0], data.abandoned?.xs[0] ?? Infinity), Math.max(data.xs.at(-1), data.abandoned?.xs.at(-1) ?? -Infinity)] : null);
    for (const chart of charts) chart.show({ data, axis: view.x, faults: run.faults, span });
    for (const chart of evaluated) chart.show(evaluationsOf(run));
  }

  let evaluated = [];
  let stopColours = () => {};
  return {
    node,
    async refresh(now) {
      run = now;
      if (!run.keys.length) return;
      if (!charts) {
        loader.keys = run.keys;
        const hooks = { zoom };
        charts = CHARTS.filter((chart) => chart.series.some((each) => run.keys.includes(each.key))).map((chart) => new Chart(chart, hooks));
        evaluated = run.evaluations.length > 1 ? EVALUATIONS.map((chart) => new Chart(chart, { zoom: () => {}, sync: "evaluations" })) : [];
        grid.replaceChildren(...[...charts, ...evaluated].map((chart) => chart.node));
        stopColours = redrawWithColours(() => [...charts, ...evaluated].forEach((chart) => chart.draw()));
        drawAxes();
        node.hidden = false;
        return load(true);
      }
      return load(false);
    },
    close() {
      stopColours();
      for (const chart of [...(charts ?? []), ...evaluated]) chart.close();
    },
  };
}

/** Evaluations as curves over the data step of their checkpoint. */
function evaluationsOf(run) {
  const sorted = [...run.evaluations].filter((each) => isNumber(each.checkpoint_data_step)).sort((a, b) => a.checkpoint_data_step - b.checkpoint_data_step);
  const series = {};
  for (const { key: name } of EVALUATIONS.flatMap((chart) => chart.series)) {
    const mean = sorted.map((each) => (isNumber(each.trained?.[name]) ? each.trained[name] : null));
    series[name] = { mean, min: mean, max: mean, bad: [] };
  }
  return { data: { xs: sorted.map((each) => each.checkpoint_data_step), series }, axis: "step", faults: [] };
}

function logPart(name) {
  let wanted = "";
  const files = el("select", { "aria-label": "Which process", onchange: () => { wanted = files.value; refresh(); } });
  const text = el("pre", { class: "log", tabindex: "0", "aria-label": "Last lines" });
  const node = el("div", { hidden: true }, section("Output", el("div", { class: "tools" }, files, el("span", { class: "quiet hint" }, "the last 64 kB; paths and secrets are left out; all of it: univip logs")), text));
  const options = memo(files, (found) => found.map((file) => el("option", { value: file }, file)));

  async function refresh() {
    if (document.getSelection()?.toString() && text.contains(document.getSelection().anchorNode)) return;
    const found = await ask(runPath(name, "log"), { file: wanted });
    node.hidden = !found.files.length;
    options(found.files);
    files.hidden = !found.files.length;
    files.value = found.file;
    const isAtEnd = text.scrollHeight - text.scrollTop - text.clientHeight < 30;
    const lines = found.lines.join("\n") || "(nothing yet)";
    if (text.textContent === lines) return;
    text.textContent = lines;
    if (isAtEnd) text.scrollTop = text.scrollHeight;
  }
  return { node, refresh };
}

function configPart(name) {
  let found = null;
  const words = el("input", { type: "search", placeholder: "filter keys and values …", "aria-label": "Filter the configuration", oninput: () => draw() });
  const only = el("input", { type: "checkbox", onchange: () => draw() });
  only.checked = true;
  const box = el("div");
  const typed = el("pre", { class: "typed" });
  const node = el("div", { hidden: true }, section("Configuration", el("div", { class: "tools" }, words, el("label", {}, only, " only what differs from the defaults")), typed, box));

  function draw() {
    const changed = new Set(found.changed);
    const search = words.value.toLowerCase();
    const rows = found.config.filter(([key_, value]) => (!only.checked || search || changed.has(key_)) && `${key_} ${value}`.toLowerCase().includes(search));
    box.replaceChildren(rows.length ? table(["key", "value"], rows.map(([key_, value]) => [changed.has(key_) ? el("b", {}, key_) : key_, el("code", {}, value)]), "Configuration", "narrow") : el("p", { class: "quiet" }, "nothing of that kind"));
  }
  return {
    node,
    async refresh() {
      if (found) return;
      found = await ask(runPath(name, "config"));
      node.hidden = !found.config.length;
      typed.textContent = found.overrides.join("\n");
      typed.hidden = !found.overrides.length;
      if (!found.changed.length) only.checked = false;
      draw();
    },
  };
}
