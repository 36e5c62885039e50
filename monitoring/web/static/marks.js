// One shape for each kind of fault, the same in timeline, curves and tables: none is told by colour alone.

import { svg } from "./dom.js";

// Paths in a box from -6 to 6.
export const MARKS = {
  rollback: { path: "M5 -6 L-6 0 L5 6 Z", tone: "bad", word: "rollback" },
  restart: { path: "M0 -6 A6 6 0 1 1 -0.01 -6 Z M0 -2.2 A2.2 2.2 0 1 0 0.01 -2.2 Z", tone: "warn", word: "restart" },
  interruption: { path: "M-5 -6 H-1.5 V6 H-5 Z M1.5 -6 H5 V6 H1.5 Z", tone: "warn", word: "attempt ended early" },
  skip: { path: "M-6 -5 H6 L0 6 Z", tone: "odd", word: "skipped batch" },
  checkpoint_failed: { path: "M-5 -5 H5 V5 H-5 Z M-2 -2 V2 H2 V-2 Z", tone: "bad", word: "checkpoint not written" },
  corruption: { path: "M0 -7 L6 0 L0 7 L-6 0 Z", tone: "bad", word: "damaged checkpoint" },
  preflight: { path: "M-6 -4 L-4 -6 L0 -2 L4 -6 L6 -4 L2 0 L6 4 L4 6 L0 2 L-4 6 L-6 4 L-2 0 Z", tone: "bad", word: "unfit node" },
  collapse: { path: "M-7 0 L-2 -2 L0 -7 L2 -2 L7 0 L2 2 L0 7 L-2 2 Z", tone: "bad", word: "collapse" },
  stall: { path: "M-5 -6 H5 L-5 6 H5 Z", tone: "warn", word: "rank that hangs" },
  straggler: { path: "M-6 -5 L0 0 L-6 5 Z M0 -5 L6 0 L0 5 Z", tone: "calm", word: "slow rank" },
  gpu_error: { path: "M2 -7 L-5 1 H-1 L-2 7 L5 -1 H1 Z", tone: "bad", word: "GPU error" },
  image_failed: { path: "M-5 -4 H5 V4 H-5 Z", tone: "calm", word: "unusable photograph" },
  dropped: { path: "M-6 -1.5 H-3 V1.5 H-6 Z M-1.5 -1.5 H1.5 V1.5 H-1.5 Z M3 -1.5 H6 V1.5 H3 Z", tone: "calm", word: "lost journal records" },
};

// The worst first.
export const ON_CURVES = ["rollback", "restart", "interruption", "skip", "checkpoint_failed", "corruption"];

export const markOf = (kind) => MARKS[kind] ?? MARKS.dropped;

export function mark(kind, attributes = {}) {
  const { path, tone } = markOf(kind);
  return svg("path", { d: path, class: `mark ${tone}`, "fill-rule": "evenodd", ...attributes });
}

export function icon(kind) {
  return svg("svg", { viewBox: "-8 -8 16 16", width: 14, height: 14, class: "icon", "aria-hidden": "true" }, mark(kind));
}
