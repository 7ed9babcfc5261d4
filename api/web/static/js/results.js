/** What became of the form: jobs, batches, and submissions that have not arrived yet, the newest first. */

import { batches } from "./batches.js";
import { el, fill } from "./dom.js";
import "./job-card.js";
import { isOlder, jobs, sending } from "./jobs.js";
import { outbox } from "./outbox.js";
import "./sweep-grid.js";
import { words } from "./words.js";

// So much of a card is enough to see that it is there.
const SEEN_PX = 120;
const said = words.create;

class Results extends HTMLElement {
  #shown = new Map();
  #stop = null;

  connectedCallback() {
    if (!this.firstChild) this.#build();
    const { signal, abort } = listening();
    const hear = (on, name, act) => on.addEventListener(name, ({ detail }) => act(detail), { signal });
    hear(jobs, "job", (job) => this.#job(job));
    hear(jobs, "gone", (id) => this.#forget(id));
    hear(batches, "batch", (known) => this.#batch(known));
    hear(batches, "gone", (id) => this.#forget(id));
    hear(outbox, "waiting", ({ entry, message }) => this.#entry(entry, "waiting", message));
    hear(outbox, "sent", ({ entry, answer }) => this.#sent(entry, answer));
    hear(outbox, "sending", ({ entry }) => this.#entry(entry, "sending"));
    hear(outbox, "refused", ({ entry }) => this.#forget(entry.id));
    hear(outbox, "gone", ({ id }) => this.#forget(id, { unlessJob: true }));
    const unwatch = jobs.watch();
    this.#stop = () => [abort(), unwatch()];
    for (const job of jobs.list().reverse()) this.#job(job);
    for (const known of batches.list()) this.#batch(known);
    this.#late();
  }

  disconnectedCallback() {
    this.#stop?.();
  }

  /** Submit a job or a batch, and show it at once: a late answer would move the cards for no seen reason. */
  async submit(submission) {
    this.#entry({ ...submission, refusal: null }, "sending");
    this.#reveal();
    await outbox.submit({ ...submission, body: await submission.body() });
  }

  /** Every picture that is shown, as one leafs through them. */
  pictures() {
    const found = [...this.list.children].flatMap((shown) => shown.jobs?.() ?? [shown.job]);
    const done = found.filter((job) => job?.state === "succeeded");
    return done.flatMap((job) => job.images.map((image) => ({ job, image })));
  }

  #build() {
    this.list = el("div", { class: "cards" });
    this.empty = el("p", { class: "hint" }, said.nothing);
    this.setAttribute("role", "region");
    this.setAttribute("aria-label", said.jobs);
    this.addEventListener("discard", ({ detail }) => outbox.discard(detail));
    this.addEventListener("send-again", ({ detail }) => outbox.again(detail));
    fill(this, el("h2", {}, said.jobs), this.empty, this.list);
  }

  async #late() {
    for (const entry of await outbox.waiting()) {
      this.#entry(entry, entry.isLate ? "waiting" : "sending", entry.refusal ?? words.errors.unreachable);
    }
    outbox.flush();
  }

  /** What was asked for must not come unseen: the newest is first, here and, on a narrow screen, below the form. */
  #reveal() {
    this.scrollTop = 0;
    const { top } = this.list.firstChild.getBoundingClientRect();
    if (top < 0 || top > innerHeight - SEEN_PX) this.scrollIntoView();
  }

  #job(job) {
    if (job.batch_id) return;
    this.#place(job.id, "job-card", job).job = job;
  }

  #batch({ batch, cells }) {
    this.#place(batch.id, "sweep-grid", about(batch)).show({ batch, cells });
  }

  #entry(entry, state, message = "") {
    const shown = this.#shown.get(entry.id);
    if (shown && !isOnItsWay(shown)) return;
    if (entry.kind === "job") {
      const job = sending(entry.id, entry.about);
      this.#place(entry.id, "job-card", job).job = { ...job, state, entry, error: { message } };
      return;
    }
    const batch = { ...entry.about, id: entry.id, state, counts: {}, progress: {} };
    this.#place(entry.id, "sweep-grid", about(batch)).show({ batch, entry, message });
  }

  #sent(entry, answer) {
    if (entry.kind === "batch") {
      const grid = this.#shown.get(entry.id);
      this.#shown.delete(entry.id);
      // It may have been listed before its answer came.
      if (this.#shown.has(answer.id)) grid?.remove();
      else if (grid) this.#shown.set(answer.id, grid);
      if (grid) grid.dataset.job = answer.id;
      batches.take(answer);
    } else jobs.take(answer);
    jobs.refresh();
  }

  #place(id, tag, dated) {
    let shown = this.#shown.get(id);
    if (!shown) {
      shown = el(tag, { dataset: { job: id } });
      this.#shown.set(id, shown);
      const older = [...this.list.children].find((other) => isOlder(other.dated, dated));
      this.list.insertBefore(shown, older ?? null);
    }
    shown.dated = dated;
    this.empty.hidden = true;
    return shown;
  }

  #forget(id, { unlessJob = false } = {}) {
    const shown = this.#shown.get(id);
    if (!shown || (unlessJob && !isOnItsWay(shown))) return;
    shown.remove();
    this.#shown.delete(id);
    this.empty.hidden = this.#shown.size > 0;
  }
}

function isOnItsWay({ dataset }) {
  return ["sending", "waiting"].includes(dataset.state);
}

/** What a batch is sorted by among jobs. */
function about({ id, created_at: at }) {
  return { id, timings: { created_at: at } };
}

function listening() {
  const stopper = new AbortController();
  return { signal: stopper.signal, abort: () => stopper.abort() };
}

customElements.define("farm-results", Results);
