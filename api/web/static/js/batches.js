/** The batches that the newest jobs came with, each with the jobs in its cells, kept true as the jobs are. */

import { get } from "./api.js";
import { ACTIVE, jobs } from "./jobs.js";

const CELLS = 200;

class Batches extends EventTarget {
  #batches = new Map();
  #told = new Set();
  #asking = false;

  constructor() {
    super();
    jobs.addEventListener("job", ({ detail }) => this.#hear(detail));
    jobs.addEventListener("gone", ({ detail }) => this.#lose(detail));
    jobs.addEventListener("listed", () => this.#look());
    addEventListener("farm:key-changed", () => [...this.#batches.keys()].forEach((id) => this.#drop(id)));
  }

  list() {
    return [...this.#batches.values()];
  }

  /** Take in a batch that was just answered. */
  take(batch) {
    const known = this.#batches.get(batch.id);
    this.#batches.set(batch.id, { cells: new Map(), looked: -1, ...known, batch });
    this.#tell(batch.id);
  }

  #hear(job) {
    const known = this.#batches.get(job.batch_id);
    if (!known) return;
    place(known.cells, job);
    this.#tell(job.batch_id);
  }

  /** A job was deleted: its place stays, empty. */
  #lose(id) {
    for (const { batch, cells } of this.#batches.values()) {
      const index = [...cells.keys()].find((one) => cells.get(one)?.id === id);
      if (index === undefined) continue;
      cells.set(index, null);
      this.#tell(batch.id);
    }
  }

  async #look() {
    if (this.#asking) return;
    this.#asking = true;
    try {
      const found = new Set(jobs.list().flatMap(({ batch_id: id }) => id ?? []));
      // A list from before it was submitted does not know it yet.
      for (const [id, { isSeen }] of this.#batches) if (isSeen && !found.has(id)) this.#drop(id);
      // Of a failure the connection tells; the next time may do.
      for (const id of found) await this.#refresh(id).catch(() => null);
    } finally {
      this.#asking = false;
    }
  }

  async #refresh(id) {
    const known = this.#batches.get(id);
    if (known?.isWhole) return;
    const batch = await get(`/v1/batches/${id}`);
    this.take(batch);
    const now = this.#batches.get(id);
    now.isSeen = true;
    for (const job of jobs.list()) if (job.batch_id === id) place(now.cells, job);
    await this.#page(now);
    this.#tell(id);
  }

  /** Ask for cells that may have changed: a page in turn, for there may be a thousand. */
  async #page(known) {
    const { batch, cells } = known;
    const pages = Math.ceil(batch.total / CELLS);
    const isOpen = (page) => openCells(batch, cells, page).length > 0;
    const next = Array.from({ length: pages }, (_, step) => (known.looked + 1 + step) % pages).find(isOpen);
    const isFinished = batch.state === "finished";
    if (next !== undefined) {
      known.looked = next;
      const found = await get(`/v1/batches/${batch.id}/jobs?start=${next * CELLS}&limit=${CELLS}`);
      const within = found.jobs.filter(({ batch_index: index }) => Math.floor(index / CELLS) === next);
      for (const job of within) place(cells, job);
      // What a finished batch has no job for was deleted.
      if (isFinished) for (const index of openCells(batch, cells, next)) cells.set(index, null);
    }
    known.isWhole = isFinished && !Array.from({ length: pages }, (_, page) => page).some(isOpen);
  }

  #drop(id) {
    this.#batches.delete(id);
    this.dispatchEvent(new CustomEvent("gone", { detail: id }));
  }

  /** Once for all that is heard at a time: a list tells of many cells. */
  #tell(id) {
    if (this.#told.has(id)) return;
    this.#told.add(id);
    queueMicrotask(() => {
      this.#told.delete(id);
      const known = this.#batches.get(id);
      if (known) this.dispatchEvent(new CustomEvent("batch", { detail: known }));
    });
  }
}

/** Put a job into its cell, unless what is there is newer. */
function place(cells, job) {
  const known = cells.get(job.batch_index);
  if (!known || known.version <= job.version) cells.set(job.batch_index, job);
}

/** The places of a page whose jobs are unknown or have not ended. */
function openCells({ total }, cells, page) {
  const first = page * CELLS;
  const places = Array.from({ length: Math.min(CELLS, total - first) }, (_, place) => first + place);
  return places.filter((index) => {
    const job = cells.get(index);
    return job === undefined || (job !== null && ACTIVE.has(job.state));
  });
}

export const batches = new Batches();
