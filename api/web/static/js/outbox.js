/** Submissions on their way: kept in this browser until the farm has answered, sent again whenever it may be back.

Each carries an id of its own, under which the farm makes one job or batch of it however often it comes.
*/

import { ApiError, key, onReachable, post, put, uuid } from "./api.js";
import { announce } from "./dom.js";
import * as store from "./store.js";
import { words } from "./words.js";

const KEPT = "submissions";
// The farm remembers the key of a batch for 48 hours; the id of a job for as long as there is the job.
const REPEATABLE_MS = 47 * 3600 * 1000;
const LONGEST_MS = 60_000;
// Of keys that never come back.
const LEFT_MS = 30 * 24 * 3600 * 1000;
const said = words.outbox;

class Outbox extends EventTarget {
  #sending = new Set();
  #shown = new Set();
  #tries = new Map();
  #isThere = true;
  #timer = null;

  constructor() {
    super();
    onReachable((now) => {
      this.#isThere = now;
      if (now) this.flush();
    });
    addEventListener("farm:key-changed", () => this.#shown.clear());
  }

  /** Submit a job or a batch: { kind, body, about }; `about` is shown meanwhile. Returns whether it has arrived. */
  async submit({ id = uuid(), ...submission }) {
    const entry = { id, ...submission, by: key.name(), at: Date.now(), refusal: null, isLate: false };
    // Before it leaves: a tab that is closed while the farm is silent has lost nothing.
    entry.isLasting = await store.put(KEPT, entry);
    return this.#send(entry);
  }

  /** What has not arrived, the oldest first. Of another key nothing is told. */
  async waiting() {
    const { mine = [], others = [] } = Object.groupBy(await store.all(KEPT), ({ by }) =>
      by === key.name() ? "mine" : "others",
    );
    for (const { id, at } of others) if (Date.now() - at > LEFT_MS) await store.drop(KEPT, id);
    return mine.sort((a, b) => a.at - b.at);
  }

  /** Send what waits. */
  async flush() {
    const entries = await this.waiting();
    const there = new Set(entries.map(({ id }) => id));
    // Sent or discarded by another tab.
    for (const id of this.#shown) if (!there.has(id) && !this.#sending.has(id)) this.#gone(id);
    for (const entry of entries) if (!entry.refusal) await this.#send(entry);
    this.#schedule();
  }

  /** Send one again that was refused. */
  async again(id) {
    const entry = await store.get(KEPT, id);
    if (!entry) {
      this.#gone(id);
      return;
    }
    this.#tries.delete(id);
    const isStale = isTooLate(entry);
    if (isStale) await this.discard(id);
    const fresh = isStale ? { ...entry, id: uuid(), at: Date.now() } : entry;
    fresh.refusal = null;
    await store.put(KEPT, fresh);
    this.#tell("sending", { entry: fresh });
    await this.#send(fresh);
  }

  /** Let one go. */
  async discard(id) {
    await store.drop(KEPT, id);
    this.#gone(id);
  }

  async #send(entry) {
    if (this.#sending.has(entry.id) || entry.by !== key.name()) return false;
    const { tries = 0, at = 0 } = this.#tries.get(entry.id) ?? {};
    if (entry.isLate && (!this.#isThere || Date.now() < at)) return false;
    this.#sending.add(entry.id);
    try {
      if (entry.isLate && isTooLate(entry)) throw new ApiError(0, "too_late", said.tooLate);
      const answer = await deliver(entry);
      await this.#forget(entry.id);
      this.#tell("sent", { entry, answer });
      return true;
    } catch (error) {
      await this.#fail(entry, error, tries);
      return false;
    } finally {
      this.#sending.delete(entry.id);
    }
  }

  async #fail(entry, error, tries) {
    if (isTransient(error, entry)) {
      // Discarded meanwhile, here or in another tab.
      if (!(await store.get(KEPT, entry.id))) {
        this.#gone(entry.id);
        return;
      }
      const pause = (error.retryAfter ?? 2 ** tries) * 1000;
      this.#tries.set(entry.id, { tries: tries + 1, at: Date.now() + Math.min(pause, LONGEST_MS) });
      if (!entry.isLate) announce(entry.isLasting ? said.kept : said.keptHere);
      // Whoever closes the tab now sees it again.
      entry.isLate = true;
      await store.put(KEPT, entry);
      this.#wait(entry, error.detail ?? words.errors.unreachable);
      this.#schedule();
    } else if (entry.isLate) {
      // The form may hold something else by now: it is kept with what the farm said to it.
      entry.refusal = error.message;
      await store.put(KEPT, entry);
      this.#tries.delete(entry.id);
      this.#wait(entry, error.message);
    } else {
      await this.#forget(entry.id);
      this.#tell("refused", { entry });
      announce(error.message, { error: true });
    }
  }

  #wait(entry, message) {
    this.#shown.add(entry.id);
    this.#tell("waiting", { entry, message });
  }

  /** Look again when the next one is due; while the farm is away, its return is what is waited for. */
  #schedule() {
    clearTimeout(this.#timer);
    const next = Math.min(...[...this.#tries.values()].map(({ at }) => at));
    if (this.#isThere && next < Infinity) {
      this.#timer = setTimeout(() => this.flush(), Math.max(0, next - Date.now()));
    }
  }

  async #forget(id) {
    this.#tries.delete(id);
    this.#shown.delete(id);
    await store.drop(KEPT, id);
  }

  #gone(id) {
    this.#tries.delete(id);
    this.#shown.delete(id);
    this.#tell("gone", { id });
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

function deliver({ id, kind, body }) {
  if (kind === "job") return put(`/v1/jobs/${id}`, body);
  return post("/v1/batches", body, { headers: { "Idempotency-Key": id } });
}

function isTooLate({ kind, at }) {
  return kind === "batch" && Date.now() - at > REPEATABLE_MS;
}

/** Whether the farm may take the very same soon: it did not answer, or had no room. A key's own limit is told first. */
function isTransient(error, { isLate }) {
  if (!(error instanceof ApiError)) return true; // the answer broke off
  if (error.code === "too_late") return false;
  if (error.status === 429) return isLate;
  return [0, 502, 503, 504].includes(error.status) || error.code === "submission_in_flight";
}

export const outbox = new Outbox();
