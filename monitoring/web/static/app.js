// Which part of the page is shown, and when it asks for news.

import { comparePage } from "./compare.js";
import { el } from "./dom.js";
import { runPage } from "./run.js";
import { runsPage } from "./runs.js";

const MAX_COMPARED = 8;
const RETRY_MS = 5_000;

const main = document.getElementById("main");
const crumbs = document.getElementById("crumbs");
const link = document.getElementById("link");

let page = null;
let timer = 0;
let turn = 0;

function open() {
  const [, place = "", names = ""] = location.hash.split("/");
  const chosen = names.split(",").filter(Boolean).map(decoded);
  page?.close();
  page = null;
  link.textContent = "";
  window.scrollTo(0, 0);
  main.replaceChildren(el("p", { class: "quiet" }, "Reading …"));
  if (place === "run" && chosen.length) {
    page = runPage(main, decoded(names));
    crumbs.replaceChildren("/ ", el("a", { href: location.hash, "aria-current": "page" }, decoded(names)));
  } else if (place === "compare" && chosen.length) {
    page = comparePage(main, chosen.slice(0, MAX_COMPARED));
    crumbs.replaceChildren("/ compare");
  } else {
    page = runsPage(main);
    crumbs.replaceChildren();
  }
  refresh();
}

async function refresh() {
  clearTimeout(timer);
  const mine = (turn += 1);
  const shown = page;
  let pause = shown.everyMs;
  try {
    await shown.refresh();
    if (mine !== turn) return;
    link.textContent = "";
    pause = shown.everyMs;
  } catch (error) {
    if (mine !== turn) return;
    pause = RETRY_MS;
    link.textContent = error.status === 404 ? "there is no such run" : error.status === 401 ? "a token is needed: open the address that univip dash printed" : "no answer; trying again";
    if (!(error instanceof TypeError) && !error.status && error.name !== "TimeoutError") throw error;
  } finally {
    if (mine === turn) timer = setTimeout(() => (document.hidden ? null : refresh()), pause);
  }
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

addEventListener("hashchange", () => {
  open();
  main.focus({ preventScroll: true });
});
document.addEventListener("visibilitychange", () => document.hidden || refresh());
document.addEventListener("keydown", (event) => {
  if (!event.ctrlKey && !event.metaKey && !event.altKey && !/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) page?.keydown?.(event);
});
open();
