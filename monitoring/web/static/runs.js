// All runs: sorted, filtered, and chosen to be compared.

import { ask } from "./api.js";
import { bar, duration, el, figure, integer, memo, pill, runHref, svg, when } from "./dom.js";

const EVERY_MS = 5_000;
const UNFINISHED_MS = 200; // not all runs have been looked at yet
const MAX_COMPARED = 8;
const ACTIVE = ["running", "queued"];
const NEEDS_A_LOOK = ["failed", "stopped", "unreadable"];

const COLUMNS = [
  { id: "run", head: "run", value: (run) => run.run },
  { id: "state", head: "state", value: (run) => run.state },
  { id: "progress", head: "progress", value: (run) => (run.target ? run.done / run.target : -1) },
  { id: "loss", head: "loss", value: (run) => run.loss ?? Infinity, isNumeric: true },
  { id: "rate", head: "images/s", value: (run) => run.images_per_s ?? -1, isNumeric: true },
  { id: "eta", head: "ETA", value: (run) => run.eta_s ?? Infinity, isNumeric: true },
  { id: "attempt", head: "attempt", value: (run) => run.attempt ?? 0, isNumeric: true },
  { id: "changed", head: "last sign", value: (run) => run.changed_at ?? 0, isNumeric: true },
  { id: "problem", head: "last problem", value: (run) => run.problem ?? "" },
];

// Kept while one looks at a run and comes back.
const view = { sort: "changed", isDescending: true, words: "", states: "all", chosen: new Set() };

export function runsPage(main) {
  const search = el("input", { type: "search", placeholder: "filter: name, state, problem …", "aria-label": "Filter runs", value: view.words, oninput: () => { view.words = search.value; draw(); } });
  const chips = el("div", { class: "chips", role: "group", "aria-label": "States" });
  const compare = el("button", { type: "button", class: "main", onclick: () => { location.hash = `#/compare/${[...view.chosen].map(encodeURIComponent).join(",")}`; } }, "Compare");
  const told = el("p", { class: "unseen", role: "status" });
  const heads = COLUMNS.map((column) => head(column, () => draw()));
  const body = el("tbody");
  const grid = el("table", { class: "runs" }, el("caption", { class: "unseen" }, "Runs; the heads sort"), el("thead", {}, el("tr", {}, el("th", { scope: "col" }, el("span", { class: "unseen" }, "compare")), heads.map((each) => each.cell))), body);
  const empty = el("p", { class: "quiet", hidden: true });
  main.replaceChildren(el("h1", { class: "unseen" }, "Runs"), el("div", { class: "tools" }, search, chips, compare), grid, empty, told);
  document.title = "univip: runs";
  let runs = null;
  const rows = memo(body, (shown) => shown.map((run) => row(run, draw)));

  function draw() {
    if (!runs) return;
    const words = view.words.toLowerCase().split(/\s+/).filter(Boolean);
    const matching = runs.filter((run) => words.every((word) => `${run.run} ${run.state} ${run.stage} ${run.problem}`.toLowerCase().includes(word)));
    drawChips(chips, matching, draw);
    const wanted = { all: null, active: ACTIVE, look: NEEDS_A_LOOK }[view.states];
    const shown = matching.filter((run) => !wanted || wanted.includes(run.state));
    const column = COLUMNS.find((each) => each.id === view.sort);
    const sign = view.isDescending ? -1 : 1;
    shown.sort((a, b) => sign * compareValues(column.value(a), column.value(b)) || compareValues(a.run, b.run));
    rows(shown.map((run) => ({ ...run, isChosen: view.chosen.has(run.run) })));
    heads.forEach((each) => each.update());
    compare.disabled = view.chosen.size < 2;
    compare.textContent = view.chosen.size ? `Compare ${view.chosen.size}` : "Compare";
    compare.title = compare.disabled ? `choose 2 to ${MAX_COMPARED} runs` : "";
    grid.hidden = !shown.length;
    empty.hidden = Boolean(shown.length);
    empty.textContent = runs.length ? "No run matches." : "No run yet. Type: univip demo";
    const summary = `${shown.length} of ${runs.length} runs`;
    if (told.textContent !== summary) told.textContent = summary;
  }

  const page = {
    everyMs: EVERY_MS,
    async refresh() {
      const found = await ask("/api/runs");
      page.everyMs = found.is_complete ? EVERY_MS : UNFINISHED_MS;
      runs = found.runs;
      draw();
    },
    keydown(event) {
      if (event.key === "/" && document.activeElement !== search) {
        event.preventDefault();
        search.focus();
      }
    },
    close() {},
  };
  return page;
}

function head(column, draw) {
  const arrow = el("span", { class: "arrow", "aria-hidden": "true" });
  const button = el("button", { type: "button", onclick: () => { view.isDescending = view.sort === column.id ? !view.isDescending : Boolean(column.isNumeric) && !["loss", "eta"].includes(column.id); view.sort = column.id; draw(); } }, column.head, arrow);
  const cell = el("th", { scope: "col", class: column.isNumeric ? "num" : null }, button);
  return {
    cell,
    update() {
      const isSorted = view.sort === column.id;
      if (isSorted) cell.setAttribute("aria-sort", view.isDescending ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
      arrow.textContent = isSorted ? (view.isDescending ? " ↓" : " ↑") : "";
    },
  };
}

function drawChips(chips, runs, draw) {
  const count = (states) => runs.filter((run) => states.includes(run.state)).length;
  const all = [["all", "all", runs.length], ["active", "running or queued", count(ACTIVE)], ["look", "needs a look", count(NEEDS_A_LOOK)]];
  const focused = [...chips.children].indexOf(document.activeElement);
  chips.replaceChildren(...all.map(([id, word, number]) => el("button", { type: "button", "aria-pressed": String(view.states === id), onclick: () => { view.states = id; draw(); } }, `${word} `, el("b", {}, String(number)))));
  if (focused >= 0) chips.children[focused].focus();
}

function row(run, draw) {
  const choose = el("input", { type: "checkbox", "aria-label": `compare ${run.run}`, onchange: () => {
    if (choose.checked && view.chosen.size < MAX_COMPARED) view.chosen.add(run.run);
    else view.chosen.delete(run.run);
    draw();
    document.querySelector(`tr[data-run="${CSS.escape(run.run)}"] input`)?.focus();
  } });
  choose.checked = run.isChosen;
  const isTraining = run.shards_done === null || run.shards_done === undefined;
  const progress = run.target
    ? [bar(run.done, run.target, `progress of ${run.run}`), el("span", { class: "figure" }, `${integer(run.done)} / ${integer(run.target)} ${isTraining ? "steps" : "images"}`)]
    : "–";
  const eta = run.eta_s ? [duration(run.eta_s), el("small", {}, when(Date.now() / 1000 + run.eta_s))] : "–";
  const cells = [
    ["run", el("a", { href: runHref(run.run) }, run.run)],
    ["state", pill(run.state, run.stage)],
    ["progress", el("div", { class: "progress" }, progress)],
    ["loss", [sparkline(run.spark ?? []), el("span", { class: "figure" }, run.loss === null || run.loss === undefined ? "–" : figure(run.loss))]],
    ["images/s", run.images_per_s ? figure(run.images_per_s, 3) : "–"],
    ["ETA", eta],
    ["attempt", run.attempt || "–"],
    ["last sign", run.changed_at ? when(run.changed_at) : "–"],
    ["problem", el("span", { class: "problem", title: run.problem || null }, run.problem || "")],
  ];
  return el("tr", { "data-run": run.run }, el("td", { class: "choose" }, choose), cells.map(([name, content], index) => el("td", { class: COLUMNS[index].isNumeric ? "num" : name === "problem" ? "words" : null, "data-label": COLUMNS[index].head }, content)));
}

/** The loss from the first to the last data step; a gap where it was not finite. */
export function sparkline(points) {
  const known = points.filter(([, loss]) => loss !== null);
  if (known.length < 2) return null;
  const [width, height] = [88, 22];
  const losses = known.map(([, loss]) => loss);
  const [low, high] = [Math.min(...losses), Math.max(...losses)];
  const [first, last] = [points[0][0], points.at(-1)[0]];
  let path = "";
  let isOpen = false;
  for (const [step, loss] of points) {
    if (loss === null) {
      isOpen = false;
      continue;
    }
    const x = 1 + ((step - first) / Math.max(1, last - first)) * (width - 2);
    const y = height - 2 - ((loss - low) / Math.max(1e-9, high - low)) * (height - 4);
    path += `${isOpen ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
    isOpen = true;
  }
  return svg("svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" }, svg("path", { d: path }));
}

function compareValues(a, b) {
  return typeof a === "string" || typeof b === "string" ? String(a).localeCompare(String(b), "en", { numeric: true }) : a - b;
}
