/** The newest jobs, kept true: listed every second while something moves, followed by events where one is on screen.

Every tab asks the farm itself, so a reload and a second tab show the same. All jobs of a batch count as one.
*/

import { get, key, stream } from "./api.js";

const QUICK_MS = 1000;
const CALM_MS = 5000;
const LISTED = 40;
// What is looked through for so many, once: a batch may be of a thousand jobs.
const FURTHER = 200;
const PAGES = 6;
// Streams hold connections, of which a browser has six for one host.
const STREAMS = 2;
// When a job that is being sent was made: after every time there is.
const SOON = "~";

export const ACTIVE = new Set(["queued", "running"]);

/** A job as it is shown while the farm has not answered yet. */
export function sending(id, params) {
  const progress = { steps_done: 0, steps_total: 0 };
  return { id, state: "sending", params, progress, images: [], timings: {}, version: 0 };
}

/** By time; the id, which a client may have chosen, tells jobs of one moment apart. */
export function isOlder(job, other) {
  const [at, then] = [job.timings.created_at ?? SOON, other.timings.created_at ?? SOON];
  return at === then ? job.id < other.id : at < then;
}

class Jobs extends EventTarget {
  #jobs = new Map();
  #streams = new Map();
  #timer = null;
  #watchers = 0;
  #isFilled = false;

  constructor() {
    super();
    // Whoever comes back to the tab sees how it is now.
    document.addEventListener("visibilitychange", () => document.hidden || this.refresh());
    addEventListener("farm:key-changed", () => this.#clear());
  }

  /** Newest first. */
  list() {
    return [...this.#jobs.values()].sort((a, b) => (isOlder(a, b) ? 1 : -1));
  }

  /** Keep the list true until the returned function is called. */
  watch() {
    this.#watchers += 1;
    if (this.#watchers === 1) this.#tick();
    return () => {
      this.#watchers -= 1;
      if (this.#watchers > 0) return;
      clearTimeout(this.#timer);
      for (const stopper of this.#streams.values()) stopper.abort();
      this.#streams.clear();
    };
  }

  /** Take in a job that was just answered. */
  take(job) {
    const known = this.#jobs.get(job.id);
    if (known && known.version > job.version) return;
    // Lists and events carry no outlook; the last one known is better than none while the job waits.
    this.#jobs.set(job.id, { ...job, outlook: job.outlook ?? (ACTIVE.has(job.state) ? known?.outlook : null) });
    this.dispatchEvent(new CustomEvent("job", { detail: this.#jobs.get(job.id) }));
  }

  /** Look now. */
  refresh() {
    clearTimeout(this.#timer);
    if (this.#watchers) this.#tick();
  }

  async #tick() {
    try {
      await this.#list();
      await this.#outlooks();
      this.#follow();
    } catch {
      // The connection tells of it; here the next time may do.
    }
    const isActive = this.list().some((job) => ACTIVE.has(job.state));
    clearTimeout(this.#timer);
    if (this.#watchers) this.#timer = setTimeout(() => this.#tick(), isActive && !document.hidden ? QUICK_MS : CALM_MS);
  }

  async #list() {
    // What is submitted while the farm writes its list is not on it.
    const [known, asked] = [[...this.#jobs.values()], key.get()];
    const page = await get(`/v1/jobs?limit=${LISTED}`);
    if (asked !== key.get()) return;
    page.jobs.forEach((job) => this.take(job));
    if (!this.#isFilled) await this.#further(page.next_cursor);
    const listed = new Set(page.jobs.map((job) => job.id));
    const last = page.next_cursor && page.jobs.at(-1);
    for (const job of known) {
      // Not listed though younger than others that are: deleted elsewhere.
      if (!listed.has(job.id) && !(last && isOlder(job, last))) this.#drop(job.id);
    }
    this.#trim();
    this.dispatchEvent(new CustomEvent("listed"));
  }

  /** Look further back where batches fill the list. */
  async #further(cursor) {
    for (let page = 1; cursor && page < PAGES && this.#entries().size < LISTED; page += 1) {
      const found = await get(`/v1/jobs?limit=${FURTHER}&cursor=${encodeURIComponent(cursor)}`);
      found.jobs.forEach((job) => this.take(job));
      cursor = found.next_cursor;
    }
    this.#isFilled = true;
  }

  /** Jobs by what they are shown in: their batch, or themselves. */
  #entries() {
    return Map.groupBy(this.list(), (job) => job.batch_id ?? job.id);
  }

  #trim() {
    for (const jobs of [...this.#entries().values()].slice(LISTED)) jobs.forEach((job) => this.#drop(job.id));
  }

  /** What one key sees is not another's. */
  #clear() {
    this.#isFilled = false;
    for (const id of [...this.#jobs.keys()]) this.#drop(id);
  }

  #drop(id) {
    this.#jobs.delete(id);
    this.dispatchEvent(new CustomEvent("gone", { detail: id }));
  }

  async #outlooks() {
    // A cell of a sweep has no room for it.
    const active = this.list().filter((job) => ACTIVE.has(job.state) && !job.batch_id);
    await Promise.all(active.slice(-4).map(async (job) => this.take(await get(`/v1/jobs/${job.id}`))));
  }

  #follow() {
    const running = this.list().filter((job) => job.state === "running").slice(-STREAMS);
    for (const job of running) {
      if (this.#streams.has(job.id)) continue;
      const stopper = new AbortController();
      this.#streams.set(job.id, stopper);
      stream(`/v1/jobs/${job.id}/events`, (name, data) => this.#hear(name, data), { signal: stopper.signal })
        .catch(() => null)
        .finally(() => {
          this.#streams.delete(job.id);
          if (!stopper.signal.aborted) this.refresh();
        });
    }
  }

  #hear(_name, data) {
    if (data.params) {
      this.take(data);
      return;
    }
    const known = this.#jobs.get(data.job_id ?? data.id);
    if (known && data.steps_done !== undefined) {
      const progress = { ...known.progress, steps_done: data.steps_done };
      this.take({ ...known, version: data.version ?? known.version, progress });
    }
  }
}

export const jobs = new Jobs();
