// Up to eight runs side by side: one curve at a time, what they reached, and where their configurations differ.

import { Curves, ask, runPath } from "./api.js";
import { Chart, redrawWithColours } from "./charts.js";
import { GAP, duration, el, figure, integer, memo, pill, runHref, section, table } from "./dom.js";

const EVERY_MS = 10_000;
const POINTS = 400;
const LOGARITHMIC = ["gradient_norm", "statistics.sinkhorn_residual"];

const view = { x: "step", key: "loss" };

export function comparePage(main, names) {
  document.title = `univip: ${names.length} runs`;
  const loaders = new Map();
  let runs = [];
  let configs = null;
  let chart = null;
  let window = null;
  let shownKey = "";
  const keys = el("select", { "aria-label": "Curve", onchange: () => { view.key = keys.value; draw(true); } });
  const axes = el("select", { "aria-label": "Abscissa", onchange: () => { view.x = axes.value; window = null; draw(true); } }, el("option", { value: "step" }, "by data step"), el("option", { value: "hours" }, "by time since each began"));
  axes.value = view.x;
  const reset = el("button", { type: "button", hidden: true, onclick: () => zoom(null) }, "Whole runs");
  const holder = el("div", { class: "charts one" });
  const reached = el("div");
  const differ = el("div");
  main.replaceChildren(el("h1", {}, `${names.length} runs compared`), section("Curve", el("div", { class: "tools" }, keys, axes, reset), holder), reached, differ);
  const drawReached = memo(reached, reachedTable);
  const drawDiffer = memo(differ, differTable);
  const options = memo(keys, (found) => found.map((key) => el("option", { value: key }, key)));
  const stopColours = redrawWithColours(() => chart?.draw());

  function zoom(to) {
    window = to;
    reset.hidden = !to;
    show();
  }

  async function draw(isForced) {
    const known = [...new Set(runs.flatMap((run) => run.keys))].filter((key) => !key.startsWith("phases."));
    if (!known.length) return;
    options(known);
    if (!known.includes(view.key)) view.key = known[0];
    keys.value = view.key;
    const changed = await Promise.all(runs.map((run) => {
      const id = `${run.run}\n${view.key}`;
      if (!loaders.has(id)) loaders.set(id, new Curves(run.run, [view.key], POINTS));
      return loaders.get(id).load(view.x === "step" ? "step" : "time", null);
    }));
    if (isForced || changed.some(Boolean)) show();
  }

  function show() {
    const wanted = `${view.key} ${view.x}`;
    if (shownKey !== wanted) {
      chart?.close();
      const series = runs.map((run, index) => ({ key: `run${index}`, label: run.run, isSparse: true }));
      chart = new Chart({ title: view.key, isTall: true, isLog: LOGARITHMIC.includes(view.key), series }, { zoom, sync: "compare" });
      holder.replaceChildren(chart.node);
      shownKey = wanted;
    }
    const tables = runs.map((run) => {
      const { data } = loaders.get(`${run.run}\n${view.key}`);
      const start = run.attempts.find((each) => each.stage === "train")?.started ?? data.xs[0];
      const xs = view.x === "step" ? data.xs : data.xs.map((time) => Math.max(0, time - start));
      return [xs, data.series[view.key]?.mean ?? xs.map(() => null), data.series[view.key]?.bad ?? []];
    });
    const joined = joinedTables(tables);
    chart.show({ data: joined, axis: view.x, faults: [], span: window ?? (joined.xs.length ? [joined.xs[0], joined.xs.at(-1)] : null) });
  }

  return {
    everyMs: EVERY_MS,
    async refresh() {
      runs = await Promise.all(names.map((name) => ask(runPath(name))));
      configs ??= await Promise.all(names.map((name) => ask(runPath(name, "config"))));
      drawReached(runs.map(({ run, state, stage, done, target, loss, results, counts, time_spent }) => ({ run, state, stage, done, target, loss, results, counts, time_spent })));
      drawDiffer({ names, configs });
      await draw(false);
    },
    close() {
      stopColours();
      chart?.close();
    },
  };
}

/** Runs have abscissas of their own; together they need one. */
function joinedTables(tables) {
  const xs = [...new Set(tables.flatMap(([own]) => own))].sort((a, b) => a - b);
  const place = new Map(xs.map((x, index) => [x, index]));
  const series = {};
  tables.forEach(([own, values, bad], index) => {
    const mean = xs.map(() => undefined);
    own.forEach((x, at) => { mean[place.get(x)] = values[at]; });
    const filled = mean.map((value) => value ?? null);
    series[`run${index}`] = { mean: filled, min: filled, max: filled, bad: bad.map(([bucket, what]) => [place.get(own[bucket]), what]) };
  });
  return { xs, series };
}

function reachedTable(runs) {
  const rows = runs.map((run) => {
    const { trained = {} } = run.results ?? {};
    const spent = Object.values(run.time_spent).reduce((sum, value) => sum + value, 0);
    const faults = ["rollback", "restart", "skip"].reduce((sum, kind) => sum + (run.counts[kind] ?? 0), 0);
    return [
      el("a", { href: runHref(run.run) }, run.run),
      pill(run.state, run.stage),
      run.done === null || run.done === undefined ? "–" : `${integer(run.done)} / ${integer(run.target)}`,
      figure(run.loss),
      figure(trained.top1 ?? trained.mean_average_precision),
      figure(trained.effective_rank),
      spent ? duration(spent) : "–",
      spent ? `${((100 * run.time_spent.useful) / spent).toFixed(1)} %` : "–",
      integer(faults),
    ];
  });
  return section("What they reached", table(["run", "state", `done${GAP}`, `loss${GAP}`, `kNN${GAP}`, `effective rank${GAP}`, `time${GAP}`, `goodput${GAP}`, `faults${GAP}`], rows, "What they reached"));
}

function differTable({ names, configs }) {
  const maps = configs.map((each) => new Map(each.config));
  const keys = [...new Set(maps.flatMap((map) => [...map.keys()]))].filter((key) => !key.startsWith("run.") && new Set(maps.map((map) => map.get(key))).size > 1);
  if (!keys.length) return section("Where their configurations differ", el("p", { class: "quiet" }, "nowhere"));
  const rows = keys.map((key) => [key, ...maps.map((map) => el("code", {}, map.get(key) ?? "–"))]);
  return section("Where their configurations differ", table(["key", ...names], rows, "Keys whose values differ"));
}
