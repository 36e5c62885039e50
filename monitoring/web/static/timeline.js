// What happened when: attempts as bars, faults as marks, checkpoints as ticks, on one axis of wall time.

import { duration, el, svg, when } from "./dom.js";
import { icon, mark, markOf } from "./marks.js";

const LANES = [
  ["attempts", 26],
  ["faults", 24],
  ["checkpoints", 18],
];
const LEFT = 84;
const RIGHT = 12;
const AXIS = 20;

export function timeline(run, width) {
  const tries = run.attempts;
  const isLive = run.state === "running";
  const starts = tries.map((each) => each.started);
  const events = [...run.faults, ...run.checkpoints].map((each) => each.time);
  const first = Math.min(...starts, ...events);
  const last = Math.max(...tries.map((each) => each.ended ?? each.started), ...events, ...(isLive ? [run.now] : []));
  if (!Number.isFinite(first) || !Number.isFinite(last)) return null;
  const span = Math.max(1, last - first);
  const place = (time) => LEFT + ((time - first) / span) * (width - LEFT - RIGHT);
  const height = LANES.reduce((sum, [, size]) => sum + size, 0) + AXIS;
  const drawing = svg("svg", { class: "timeline", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `${tries.length} attempts and ${run.faults.length} faults from ${when(first)} to ${when(last)}; the tables below list them` });
  let top = 0;
  for (const [name, size] of LANES) {
    drawing.append(
      svg("text", { x: 0, y: top + size / 2, class: "lane", "dominant-baseline": "central" }, name),
      svg("line", { x1: LEFT, x2: width - RIGHT, y1: top + size / 2, y2: top + size / 2, class: "rail" }),
    );
    if (name === "attempts") tries.forEach((each, index) => drawing.append(attempt(each, tries[index + 1], top + 4, size - 8, place, run, last)));
    if (name === "faults") {
      for (const fault of run.faults) {
        const node = mark(fault.kind, { transform: `translate(${place(fault.time)} ${top + size / 2})` });
        node.append(svg("title", {}, `${when(fault.time, true)}: ${fault.text}`));
        drawing.append(node);
      }
    }
    if (name === "checkpoints") {
      const path = run.checkpoints.map((each) => `M${place(each.time).toFixed(1)} ${top + 4}v${size - 8}`).join("");
      drawing.append(svg("path", { d: path, class: "tick" }));
    }
    top += size;
  }
  drawing.append(axis(first, last, width, top, place));
  return drawing;
}

function attempt(each, next, y, height, place, run, last) {
  const isOpen = each.ended === null;
  const end = each.ended ?? (next ? next.started : run.state === "running" ? last : each.started);
  const x = place(each.started);
  const wide = Math.max(3, place(end) - x);
  const stage = each.stage.split(":")[0];
  const tone = isOpen && !next ? "live" : each.exit_code === 0 || each.exit_code === 75 ? "good" : "ended";
  const words = `attempt ${each.number}, ${each.stage} on ${each.host}: ${isOpen && !next ? "runs" : each.cause || "ended without a word"}, ${duration(end - each.started)}`;
  const group = svg("g", { class: `attempt ${tone}` }, svg("rect", { x, y, width: wide, height, rx: 2 }), svg("title", {}, words));
  const label = `${each.number} ${stage}`;
  if (wide > 7 * label.length + 8) group.append(svg("text", { x: x + 6, y: y + height / 2, "dominant-baseline": "central" }, label));
  for (const round of run.rounds.filter((each_) => each_.attempt === each.number && each_.round > 0)) {
    group.append(svg("line", { x1: place(round.time), x2: place(round.time), y1: y, y2: y + height, class: "round" }));
  }
  return group;
}

function axis(first, last, width, top, place) {
  const group = svg("g", { class: "axis" });
  const count = Math.max(2, Math.floor((width - LEFT) / 150));
  const isLong = last - first > 1.5 * 86400;
  for (let index = 0; index <= count; index += 1) {
    const time = first + ((last - first) * index) / count;
    const words = when(time, last - first < 600).split(" ");
    const anchor = index === 0 ? "start" : index === count ? "end" : "middle";
    const label = index === 0 || isLong ? words.slice(1).join(" ") : words.at(-1);
    group.append(svg("text", { x: place(time), y: top + 14, "text-anchor": anchor }, label));
  }
  return group;
}

/** Which shapes are on the timeline, and what they mean. */
export function key(run) {
  const kinds = [...new Set(run.faults.map((fault) => fault.kind))];
  return el("ul", { class: "legend key" }, kinds.map((kind) => el("li", {}, icon(kind), ` ${markOf(kind).word}`)));
}

const PARTS = [
  ["useful", "steps that count", "the state at present comes from them"],
  ["redone", "steps lost", "a rollback or restart went back behind them"],
  ["overhead", "start, restore, wait", "inside an attempt, outside its steps"],
  ["between", "nobody worked", "between attempts, such as in the queue"],
];

/** One bar: where the wall time of training went. */
export function timeSpent(spent) {
  const total = PARTS.reduce((sum, [name]) => sum + (spent[name] ?? 0), 0);
  if (!(total > 0)) return null;
  const shown = PARTS.filter(([name]) => spent[name] > 0);
  const bar = el("div", { class: "spent", role: "img", "aria-label": shown.map(([name, word]) => `${word} ${share(spent[name], total)}`).join(", ") });
  for (const [name] of shown) {
    const part = el("span", { class: `part ${name}` });
    part.style.flexGrow = spent[name] / total;
    bar.append(part);
  }
  const list = el("ul", { class: "legend" }, shown.map(([name, word, help]) => el("li", { title: help }, el("span", { class: `dot part ${name}`, "aria-hidden": "true" }), ` ${word} `, el("b", { class: "figure" }, share(spent[name], total)), el("span", { class: "quiet" }, ` ${duration(spent[name])}`))));
  return el("div", { class: "spent-box" }, bar, list);
}

export const share = (part, total) => (total > 0 ? `${((100 * part) / total).toFixed(1)} %` : "–");
