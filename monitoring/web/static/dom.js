// Elements, words and numbers. Whatever comes from a run reaches the screen as text only: nothing here, or
// anywhere in this page, parses markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element; `on…` adds a listener, null children are left out, all others become text or are appended. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Draw a part of the page anew, but only when what it shows has changed: focus and selection stay. */
export function memo(container, draw) {
  let before;
  return (data) => {
    const now = JSON.stringify(data) ?? "";
    if (now === before) return;
    before = now;
    const drawn = draw(data);
    container.replaceChildren(...(drawn ? [drawn].flat() : []));
    container.hidden = !drawn;
  };
}

export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

export function integer(value) {
  return isNumber(value) ? Math.round(value).toLocaleString("en").replaceAll(",", "\u202f") : "–";
}

/** A value for people, to some significant digits. */
export function figure(value, digits = 4) {
  if (typeof value === "string") return value; // NaN, Infinity
  if (!isNumber(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return value.toExponential(Math.max(0, digits - 2)).replace("e+", "e");
  if (size >= 1e4) return integer(value);
  return String(Number(value.toPrecision(digits)));
}

export function percent(ratio, digits = 1) {
  return isNumber(ratio) ? `${(100 * ratio).toFixed(digits)} %` : "–";
}

/** Such as 42 s, 3 min 5 s, 2 h 10 min, 4 d 3 h. */
export function duration(seconds) {
  if (!isNumber(seconds)) return "–";
  if (seconds < 10) return `${Math.max(0, seconds).toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

/** The same, in one unit. */
export function roughDuration(seconds) {
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= size) return `${figure(seconds / size, 2)} ${unit}`;
  }
  return `${figure(seconds, 2)} s`;
}

export function bytes(value) {
  if (!isNumber(value)) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, value > 0 ? Math.floor(Math.log10(value) / 3) : 0);
  return `${figure(value / 1000 ** power, 3)} ${units[power]}`;
}

const DAY = { weekday: "short", day: "2-digit", month: "short" };
const CLOCK = { hour: "2-digit", minute: "2-digit", hour12: false };

export function when(seconds, withSeconds = false) {
  if (!isNumber(seconds)) return "–";
  const clock = withSeconds ? { ...CLOCK, second: "2-digit" } : CLOCK;
  return new Date(seconds * 1000).toLocaleString("en-GB", { ...DAY, ...clock }).replace(",", "");
}

export function moment(seconds) {
  const machine = isNumber(seconds) ? new Date(seconds * 1000).toISOString() : null;
  return el("time", { datetime: machine, title: machine }, when(seconds, true));
}

// A state is a sign, a word and a colour; the sign and the word suffice.
const SIGNS = { running: "▶", done: "✓", failed: "✕", cancelled: "⊘", stopped: "■", queued: "…", unreadable: "?", unread: "·" };

export function pill(state, stage = "") {
  const name = String(state || "unknown");
  const known = Object.hasOwn(SIGNS, name) ? name : "unreadable";
  const words = ["running", "stopped", "failed", "queued"].includes(name) && stage ? `${name} ${stage}` : name;
  return el("span", { class: `pill ${known}` }, el("span", { "aria-hidden": "true" }, SIGNS[known]), ` ${words}`);
}

export function bar(done, target, label) {
  const ratio = isNumber(done) && target > 0 ? Math.min(1, done / target) : 0;
  const inner = el("span", { class: "bar-done" });
  inner.style.width = `${100 * ratio}%`;
  const attributes = { class: "bar", role: "progressbar", "aria-label": label, "aria-valuemin": 0 };
  return el("span", { ...attributes, "aria-valuemax": 100, "aria-valuenow": Math.round(100 * ratio) }, inner);
}

export function section(title, ...content) {
  const id = `h-${title.toLowerCase().replaceAll(/[^a-z]+/g, "-")}`;
  return el("section", { class: `card ${id}`, "aria-labelledby": id }, el("h2", { id }, title), ...content);
}

/** Ends the head of a column of numbers. */
export const GAP = "\u00a0";

/** A table; `rows` holds cells, a number is set to the right. */
export function table(heads, rows, caption, style = null) {
  const numeric = heads.map((head) => head.endsWith(GAP));
  const cell = (value, index) =>
    el("td", { class: [numeric[index] ? "num" : "", (value ?? "–") === "–" ? "none" : ""].join(" ").trim() || null, "data-label": heads[index].trim() }, value ?? "–");
  return el(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el(
      "table",
      { class: style },
      el("caption", { class: "unseen" }, caption),
      el("thead", {}, el("tr", {}, heads.map((head, index) => el("th", { scope: "col", class: numeric[index] ? "num" : null }, head.trim())))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map(cell)))),
    ),
  );
}

export const runHref = (name) => `#/run/${encodeURIComponent(name)}`;
