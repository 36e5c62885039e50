// What a run works on: shards of boxes, samples, and the picture of the last ones.

import { runPath } from "./api.js";
import { GAP, el, integer, isNumber, memo, moment, percent, section, svg, table } from "./dom.js";

// As univip/data/sheet.py draws them: words, colour, dashes.
const OUTLINES = [["scene 1", "#56b4e9", null], ["scene 2", "#e69f00", "7 4"], ["box from the search", "#ffffff", null], ["random box, for want of one from the search", "#cc79a7", "2 3"]];

/** The picture of the last samples; the old one stays until the new one is there. */
export function picturePart(name) {
  const image = el("img", { alt: "" });
  const link = el("a", { target: "_blank", rel: "noopener", title: "in full size" }, image);
  const words = el("div");
  const swatch = (colour, dash) => svg("svg", { viewBox: "0 0 22 10", width: 22, height: 10, "aria-hidden": "true" }, svg("rect", { width: 22, height: 10, fill: "#1a1a1a" }), svg("path", { d: "M0 5H22", stroke: colour, "stroke-width": 3, "stroke-dasharray": dash }));
  const legend = el("ul", { class: "legend" }, OUTLINES.map(([outline, colour, dash]) => el("li", {}, swatch(colour, dash), outline)));
  const help = el("p", { class: "quiet" }, "Left the photograph, the overlap of its scenes bright. Right what the network sees: both scenes, below them the boxes, numbered, as the online network and, in the last row, as the target network sees them.");
  const figure_ = el("figure", { class: "sheet" }, link, el("figcaption", {}, words, legend, help));
  const problem = el("p", { class: "why calm" });
  const node = el("div", { hidden: true }, section("Last samples", problem, figure_));
  const tell = memo(words, ({ data_step, time, samples }) => [
    el("p", {}, el("b", {}, `Data step ${integer(data_step)}`), ", drawn ", moment(time)),
    el("ul", {}, samples.map(({ image_id, epoch }) => el("li", {}, `photograph ${image_id}, epoch ${integer(epoch)}`))),
  ]);
  return {
    node,
    show(shown) {
      node.hidden = !shown;
      if (!shown) return;
      problem.hidden = !shown.problem;
      problem.textContent = `The newest picture could not be drawn: ${shown.problem}`;
      figure_.hidden = !isNumber(shown.time);
      if (figure_.hidden) return;
      const source = `${runPath(name, "samples")}?at=${shown.time}`;
      if (image.getAttribute("src") !== source) {
        image.src = source;
        link.href = source;
      }
      image.alt = shown.words;
      tell(shown);
    },
  };
}

export function drawSamples(samples) {
  const { images } = samples;
  if (!images) return null;
  const lost = Object.entries(samples).filter(([name, count]) => name.startsWith("substituted_") && count);
  const rows = [["samples", integer(images), ""]];
  for (const [name, words] of [["too_small", "too small for instances"], ["fallback", "with random boxes, for want of proposals"], ["identical_scenes", "with twice the same scene"]]) {
    if (samples[name]) rows.push([words, integer(samples[name]), percent(samples[name] / images, 2)]);
  }
  for (const [name, count] of lost) rows.push([`replaced by another: ${name.replace("substituted_", "").replaceAll("_", " ")}`, integer(count), percent(count / images, 3)]);
  return section("Samples", table(["what became of them", `count${GAP}`, `share${GAP}`], rows, "Samples", "narrow"));
}

const SHARD_SIGNS = { done: "✓", running: "▶", failed: "✕" };

export function drawShards(shards) {
  if (!shards.length) return null;
  const details = el("p", { class: "quiet", "aria-live": "polite" }, "Point at a shard, or move with the arrow keys.");
  const words = (shard) => {
    const failed = shard.failed ? `, ${integer(shard.failed)} unusable` : "";
    return `shard ${shard.shard}: ${shard.state}, ${integer(shard.images_done)} of ${integer(shard.images)} images, ${integer(shard.boxes)} boxes${failed}`;
  };
  const cells = shards.map((shard, index) => {
    const state = Object.hasOwn(SHARD_SIGNS, shard.state) ? shard.state : "other";
    const cell = el("li", { class: `shard ${state}`, tabindex: index ? "-1" : "0", "aria-label": words(shard) }, el("span", { "aria-hidden": "true" }, state === "running" && shard.images ? `${Math.floor((100 * (shard.images_done ?? 0)) / shard.images)}` : SHARD_SIGNS[state] ?? "?"));
    if (state === "running" && shard.images) cell.style.setProperty("--part", `${(100 * (shard.images_done ?? 0)) / shard.images}%`);
    const tell = () => { details.textContent = words(shard); };
    cell.addEventListener("mouseenter", tell);
    cell.addEventListener("focus", tell);
    return cell;
  });
  const grid = el("ul", { class: "shards", "aria-label": "Shards", onkeydown: (event) => {
    const at = cells.indexOf(document.activeElement);
    const columns = Math.max(1, Math.floor(grid.clientWidth / (cells[0].offsetWidth + 4)));
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    if (at < 0 || !step || !cells[at + step]) return;
    event.preventDefault();
    cells[at].tabIndex = -1;
    cells[at + step].tabIndex = 0;
    cells[at + step].focus();
  } }, cells);
  const count = (state) => shards.filter((shard) => shard.state === state).length;
  const sum = (name) => shards.reduce((total, shard) => total + (shard[name] ?? 0), 0);
  const summary = `${count("done")} done, ${count("running")} running, ${count("failed")} failed of ${shards.length} · ${integer(sum("images_done"))} images, ${integer(sum("boxes"))} boxes, ${integer(sum("failed"))} unusable photographs`;
  return section("Shards of the proposals", el("p", { class: "figure" }, summary), grid, details);
}
