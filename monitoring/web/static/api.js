// What is asked of the server, and curves that grow by what is new.

const PATIENCE_MS = 30_000;

export async function ask(path, parameters = {}) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== null && value !== ""));
  const response = await fetch(`${path}${query.size ? `?${query}` : ""}`, {
    cache: "no-store",
    signal: AbortSignal.timeout(PATIENCE_MS),
  });
  if (!response.ok) {
    const error = new Error(`the server answers ${response.status}`);
    error.status = response.status;
    throw error;
  }
  return response.json();
}

export const runPath = (name, view = "") => `/api/runs/${encodeURIComponent(name)}${view ? `/${view}` : ""}`;

/** The curves of one run; `load` fetches only what came since, where that is possible. */
export class Curves {
  constructor(run, keys, points) {
    this.run = run;
    this.keys = keys;
    this.points = points;
    this.request = "";
    this.cursor = "";
    this.data = null;
  }

  /** Whether anything changed. */
  async load(x, window) {
    const parameters = { keys: this.keys.join(","), x, points: this.points, from: window?.[0] ?? null, to: window?.[1] ?? null };
    const request = JSON.stringify(parameters);
    const since = request === this.request ? this.cursor : "";
    const fresh = await ask(runPath(this.run, "series"), { ...parameters, since });
    const isSame = since !== "" && fresh.cursor === this.cursor && this.data?.records === fresh.records;
    this.request = request;
    this.cursor = window ? "" : fresh.cursor;
    if (isSame) return false;
    this.data = fresh.start > 0 ? this.#extended(fresh) : fresh;
    return true;
  }

  #extended(fresh) {
    const keep = fresh.start;
    const series = {};
    for (const [key, now] of Object.entries(fresh.series)) {
      const before = this.data.series[key];
      series[key] = {};
      for (const name of Object.keys(now)) {
        series[key][name] =
          name === "bad"
            ? [...before.bad.filter(([bucket]) => bucket < keep), ...now.bad.map(([bucket, what]) => [bucket + keep, what])]
            : [...before[name].slice(0, keep), ...now[name]];
      }
    }
    return { ...fresh, start: 0, xs: [...this.data.xs.slice(0, keep), ...fresh.xs], series };
  }
}
