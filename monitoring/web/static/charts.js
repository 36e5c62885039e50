// Curves: a line of means with a band of extremes, faults as marks on the axis, and values that are not finite
// as crosses. uPlot draws; this says what.

import { duration, el, figure, integer, percent, svg, when } from "./dom.js";
import { ON_CURVES, markOf } from "./marks.js";

const HEIGHT = 190;
const TALL = 360;
const print = matchMedia("print");

/** Colours of the moment; paper is always light. */
export function palette() {
  const style = getComputedStyle(document.documentElement);
  const value = (name) => style.getPropertyValue(`--${name}`).trim();
  const series = Array.from({ length: 8 }, (_, index) => value(`series-${index}`));
  return { series, text: value("quiet"), grid: value("grid"), ink: value("ink"), bad: value("bad"), warn: value("warn"), odd: value("odd"), calm: value("quiet"), surface: value("surface") };
}

// With the colour, a dash of its own for each run or term.
export const DASHES = [[], [7, 3], [2, 2], [9, 3, 2, 3], [12, 4], [4, 4], [1, 3], [9, 2, 2, 2, 2, 2]];

/** One figure: what it shows is set by `show`, and drawn again when its width or the colours change. */
export class Chart {
  /**
   * @param {object} what title, help, unit, series: [{key, label}], isLog, isShare, format
   * @param {object} hooks zoom(window): the reader marked a part of the abscissa
   */
  constructor(what, hooks) {
    this.what = what;
    this.hooks = hooks;
    this.plot = null;
    this.shown = null;
    this.legend = el("ul", { class: "legend" });
    this.words = el("p", { class: "unseen" });
    this.box = el("div", { class: "plot", role: "img", "aria-label": what.title });
    const title = el("figcaption", {}, el("span", { class: "chart-title", title: what.help }, what.title));
    if (what.unit) title.append(el("span", { class: "quiet" }, ` ${what.unit}`));
    this.node = el("figure", { class: "chart" }, el("div", { class: "chart-head" }, title, this.legend), this.box, this.words);
    this.observer = new ResizeObserver(() => this.#resize());
    this.observer.observe(this.box);
  }

  close() {
    this.observer.disconnect();
    this.plot?.destroy();
  }

  /** @param {object} shown data (of Curves), axis, faults, span: [least, greatest] abscissa */
  show(shown) {
    this.shown = shown;
    this.draw();
  }

  draw() {
    if (!this.shown) return;
    const { data, axis } = this.shown;
    this.colours = palette();
    this.curves = this.what.isShare ? shares(data, this.what.series) : lines(data, this.what.series);
    this.node.hidden = !this.curves.length;
    if (!this.curves.length) return;
    const columns = [data.xs];
    const series = [{}];
    const bands = [];
    this.curves.forEach((curve, index) => {
      const colour = curve.colour ?? this.colours[curve.tone] ?? this.colours.series[index % 8];
      curve.drawn = colour;
      if (this.what.isShare) {
        columns.push(curve.upper);
        series.push({ stroke: this.colours.surface, width: 1, points: { show: false } });
        bands.push(index ? { series: [index + 1, index], fill: colour } : null);
        if (!index) series[1].fill = colour;
        return;
      }
      const first = columns.length;
      const dash = this.curves.length > 1 ? DASHES[index % 8] : [];
      columns.push(positive(curve.high, this.what.isLog), positive(curve.low, this.what.isLog), positive(curve.mean, this.what.isLog));
      const edge = { stroke: "transparent", width: 0, points: { show: false }, spanGaps: false };
      const line = { stroke: colour, width: 1.6, dash, spanGaps: Boolean(curve.isSparse), points: { show: data.xs.length < 3 } };
      series.push(edge, { ...edge }, line);
      if (curve.high !== curve.mean) bands.push({ series: [first, first + 1], fill: translucent(colour) });
    });
    const size = { width: Math.max(200, this.box.clientWidth), height: this.#height() };
    const font = `11px ${getComputedStyle(document.body).fontFamily}`;
    const axes = { stroke: this.colours.text, font, grid: { stroke: this.colours.grid, width: 1 }, ticks: { stroke: this.colours.grid, width: 1, size: 4 } };
    const format = this.what.format ?? ((value) => figure(value, 4));
    const options = {
      ...size,
      series,
      bands: bands.filter(Boolean),
      legend: { show: false },
      padding: [10, 10, 0, 0],
      cursor: { sync: { key: this.hooks.sync ?? "run" }, drag: { x: true, y: false, setScale: false }, points: { show: false } },
      scales: {
        x: { time: false, range: () => this.#span(data.xs) },
        y: this.what.isShare ? { range: [0, 1] } : { distr: this.what.isLog ? 3 : 1, range: this.what.isLog ? logRange : lineRange },
      },
      axes: [
        { ...axes, size: 28, space: 70, values: (plot, splits) => this.#ticks(splits, axis) },
        { ...axes, size: 52, space: 28, values: (plot, splits) => splits.map((value) => (value === null ? "" : (this.what.tick ?? format)(value))), filter: this.what.isLog ? decades : undefined },
      ],
      hooks: {
        draw: [(plot) => this.#marks(plot)],
        setCursor: [(plot) => this.#tell(plot.cursor.idx)],
        setSelect: [(plot) => this.#select(plot)],
        ready: [(plot) => plot.over.addEventListener("dblclick", () => this.hooks.zoom(null))],
      },
    };
    this.plot?.destroy();
    this.plot = new uPlot(options, columns, this.box);
    this.#tell(null);
    this.#describe();
  }

  #span(xs) {
    const [least, most] = this.shown.span ?? [xs[0], xs.at(-1)];
    return least === most ? [least - 1, most + 1] : [least, most];
  }

  #height() {
    return this.what.isTall ? TALL : HEIGHT;
  }

  #resize() {
    const width = Math.max(200, this.box.clientWidth);
    if (this.plot && Math.abs(this.plot.width - width) > 1) this.plot.setSize({ width, height: this.#height() });
  }

  #select(plot) {
    if (plot.select.width < 8) return;
    const window = [plot.select.left, plot.select.left + plot.select.width].map((left) => plot.posToVal(left, "x"));
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    this.hooks.zoom(window);
  }

  #ticks(splits, axis) {
    if (axis === "step") return splits.map(integer);
    if (axis === "hours") return splits.map((value) => duration(value).replace(/ 0 (s|min|h)$/, ""));
    const isLong = splits.length > 1 && splits.at(-1) - splits[0] > 1.5 * 86400;
    return splits.map((value) => {
      const words = when(value).split(" ");
      return isLong ? words.slice(1, 3).join(" ") : words.at(-1);
    });
  }

  /** What no line can show: futures turned away from, faults, values that are not finite. */
  #marks(plot) {
    const { data, axis, faults = [] } = this.shown;
    const { ctx, bbox } = plot;
    const ratio = devicePixelRatio;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top - 10 * ratio, bbox.width, bbox.height + 10 * ratio);
    ctx.clip();
    if (data.abandoned && !this.what.isShare) {
      ctx.strokeStyle = this.colours.text;
      ctx.lineWidth = ratio;
      ctx.setLineDash([2 * ratio, 2 * ratio]);
      for (const { key } of this.what.series) this.#abandoned(plot, data.abandoned, key);
      ctx.setLineDash([]);
    }
    // In a crowd the worst are seen; the table has all.
    const [ruled, marked] = [[], []];
    const isFree = (taken, x, room) => !taken.some((other) => Math.abs(other - x) < room * ratio) && taken.push(x) > 0;
    const shown = faults.filter((fault) => ON_CURVES.includes(fault.kind));
    for (const fault of shown.sort((a, b) => ON_CURVES.indexOf(a.kind) - ON_CURVES.indexOf(b.kind))) {
      const at = axis === "step" ? fault.data_step : fault.time;
      if (at === null || at === undefined) continue;
      const x = Math.round(plot.valToPos(at, "x", true));
      const { path, tone } = markOf(fault.kind);
      ctx.strokeStyle = ctx.fillStyle = this.colours[tone];
      ctx.lineWidth = ratio;
      if (isFree(ruled, x, 24)) {
        ctx.globalAlpha = 0.55;
        ctx.setLineDash([3 * ratio, 3 * ratio]);
        ctx.beginPath();
        ctx.moveTo(x, bbox.top);
        ctx.lineTo(x, bbox.top + bbox.height);
        ctx.stroke();
        ctx.setLineDash([]);
        ctx.globalAlpha = 1;
      }
      if (!isFree(marked, x, 6)) continue;
      ctx.save();
      ctx.translate(x, bbox.top - 3 * ratio);
      ctx.scale(0.8 * ratio, 0.8 * ratio);
      ctx.fill(new Path2D(path), "evenodd");
      ctx.restore();
    }
    ctx.fillStyle = ctx.strokeStyle = this.colours.bad;
    ctx.setLineDash([]);
    ctx.lineWidth = 2 * ratio;
    ctx.font = `${11 * ratio}px sans-serif`;
    ctx.textBaseline = "bottom";
    for (const curve of this.curves) {
      for (const [bucket, what] of curve.bad ?? []) {
        const x = plot.valToPos(data.xs[bucket], "x", true);
        const y = bbox.top + bbox.height - 8 * ratio;
        const arm = 4 * ratio;
        ctx.beginPath();
        ctx.moveTo(x - arm, y - arm);
        ctx.lineTo(x + arm, y + arm);
        ctx.moveTo(x + arm, y - arm);
        ctx.lineTo(x - arm, y + arm);
        ctx.stroke();
        const isRight = x > bbox.left + bbox.width - 40 * ratio;
        ctx.textAlign = isRight ? "right" : "left";
        ctx.fillText(what, x + (isRight ? -7 : 7) * ratio, y + 6 * ratio);
      }
    }
    ctx.restore();
  }

  #abandoned(plot, abandoned, key) {
    const values = abandoned.series[key]?.mean ?? [];
    const { ctx } = plot;
    ctx.beginPath();
    let before = null;
    const steps = abandoned.xs.slice(1).map((x, index) => x - abandoned.xs[index]).sort((a, b) => a - b);
    const typical = steps[steps.length >> 1] ?? 0;
    abandoned.xs.forEach((x, index) => {
      const value = values[index];
      if (value === null || value === undefined || (this.what.isLog && value <= 0)) return;
      const place = [plot.valToPos(x, "x", true), plot.valToPos(value, "y", true)];
      if (before !== null && x - before <= 3 * typical) ctx.lineTo(...place);
      else ctx.moveTo(...place);
      before = x;
    });
    ctx.stroke();
  }

  /** Values in the legend: at the cursor, else the newest. */
  #tell(index) {
    const format = this.what.isShare ? (value) => percent(value) : this.what.format ?? ((value) => figure(value, 4));
    const items = this.curves.map((curve, place) => {
      const at = index ?? lastKnown(curve.mean);
      const bad = curve.bad?.find(([bucket]) => bucket === index)?.[1];
      const dash = this.curves.length > 1 && !this.what.isShare ? DASHES[place % 8].join(" ") : "";
      return el(
        "li",
        {},
        this.curves.length > 1 ? swatch(curve.drawn, dash, this.what.isShare) : null,
        curve.label ? `${curve.label} ` : "",
        el("b", { class: "figure" }, bad ?? (at === null || at < 0 || curve.mean[at] === null ? "–" : format(curve.mean[at]))),
      );
    });
    const { axis, data } = this.shown;
    if (index !== null && index !== undefined && data.xs[index] !== undefined) {
      items.unshift(el("li", { class: "quiet figure" }, axis === "step" ? `step ${integer(data.xs[index])}` : axis === "hours" ? duration(data.xs[index]) : when(data.xs[index], true)));
    }
    this.legend.replaceChildren(...items);
  }

  /** The figure in words, for who cannot see it. */
  #describe() {
    const format = this.what.isShare ? (value) => percent(value) : this.what.format ?? ((value) => figure(value, 4));
    const words = this.curves.map((curve) => {
      const low = (curve.low ?? curve.mean).filter((value) => value !== null);
      const high = (curve.high ?? curve.mean).filter((value) => value !== null);
      const last = lastKnown(curve.mean);
      if (!low.length || last < 0) return `${curve.label || this.what.title}: no finite value`;
      const bad = curve.bad?.length ? `, not finite in ${curve.bad.length} places` : "";
      const range = `least ${format(low.reduce((a, b) => Math.min(a, b)))}, greatest ${format(high.reduce((a, b) => Math.max(a, b)))}`;
      return `${curve.label || this.what.title}: now ${format(curve.mean[last])}, ${range}${bad}`;
    });
    this.words.textContent = `${words.join("; ")}.`;
    this.box.setAttribute("aria-label", `${this.what.title}. ${words.join("; ")}`);
  }
}

export function swatch(colour, dash, isArea) {
  const shape = isArea ? { d: "M0 0 H22 V10 H0 Z", fill: colour } : { d: "M0 5 H22", stroke: colour, "stroke-width": 2.2 };
  const line = svg("path", { ...shape, "stroke-dasharray": dash || null });
  return svg("svg", { viewBox: "0 0 22 10", width: 22, height: 10, "aria-hidden": "true" }, line);
}

/** Colours follow the system and the paper. */
export function redrawWithColours(draw) {
  const queries = [matchMedia("(prefers-color-scheme: dark)"), print];
  for (const query of queries) query.addEventListener("change", draw);
  return () => queries.forEach((query) => query.removeEventListener("change", draw));
}

function lines(data, series) {
  return series
    .filter(({ key }) => data.series[key]?.mean.some((value) => value !== null) || data.series[key]?.bad.length)
    .map((each) => {
      const found = data.series[each.key];
      return { ...each, mean: found.mean, low: found.min, high: found.max, bad: found.bad };
    });
}

/** Amounts as shares of their sum, bucket by bucket, each lying on the one before. */
function shares(data, series) {
  const known = series.filter(({ key }) => data.series[key]?.sum.some((value) => value > 0));
  const totals = data.xs.map((_, index) => known.reduce((sum, { key }) => sum + (data.series[key].sum[index] ?? 0), 0));
  let below = data.xs.map(() => 0);
  return known.map((each) => {
    const mean = data.series[each.key].sum.map((value, index) => (totals[index] > 0 ? (value ?? 0) / totals[index] : null));
    below = below.map((value, index) => value + (mean[index] ?? 0));
    return { ...each, mean, upper: below.map((value, index) => (totals[index] > 0 ? value : null)) };
  });
}

function positive(values, isLog) {
  return isLog ? values.map((value) => (value > 0 ? value : null)) : values;
}

function lastKnown(values) {
  return values.findLastIndex((value) => value !== null);
}

function lineRange(plot, low, high) {
  if (low === null || high === null) return [0, 1];
  const margin = high > low ? (high - low) * 0.06 : Math.abs(high) * 0.1 || 1;
  return [low >= 0 && low < margin * 2 ? Math.max(0, low - margin) : low - margin, high + margin];
}

function logRange(plot, low, high) {
  return low > 0 && high > 0 ? [low / 1.3, high * 1.3] : [0.1, 10];
}

/** Of the many ticks of a logarithmic axis, as few as tell the values: 1, or 1 2 5, of each decade. */
function decades(plot, splits) {
  const [least, most] = [plot.scales.y.min, plot.scales.y.max];
  const leading = Math.log10(most / least) > 2.2 ? [1] : Math.log10(most / least) > 0.9 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8];
  return splits.map((value) => {
    const digit = value / 10 ** Math.floor(Math.log10(value) + 1e-9);
    return leading.some((known) => Math.abs(digit - known) < 1e-6) ? value : null;
  });
}

function translucent(colour) {
  return `${colour}38`; // colours are six hexadecimal digits
}
