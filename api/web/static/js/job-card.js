/** One job: its picture as it takes shape, how far it is, why it waits, and what can be done with it. */

import { blob, post, remove } from "./api.js";
import { acting, el, fill } from "./dom.js";
import { ACTIVE, jobs } from "./jobs.js";
import { Picture } from "./picture.js";
import { words } from "./words.js";

const PREVIEW_MS = 1000;
const said = words.job;

export class JobCard extends HTMLElement {
  #job = null;
  #parts = null;
  #previewing = null;

  /** Show a job as it is now. */
  set job(job) {
    const was = this.#job;
    this.#job = job;
    if (!this.#parts) this.#build();
    this.#render(was);
  }

  get job() {
    return this.#job;
  }

  disconnectedCallback() {
    clearTimeout(this.#previewing);
    this.#previewing = null;
  }

  #build() {
    const { width, height } = this.#job.params;
    const parts = {
      frame: el("div", { class: "frame" }),
      bar: el("progress", { max: 1, value: 0 }),
      state: el("p", { class: "state", role: "status" }),
      prompt: el("p", { class: "text", dir: "auto" }, this.#job.params.prompt),
      actions: el("div", { class: "actions" }),
    };
    this.#parts = parts;
    // Its shape is known before its pixels are: nothing moves when they come.
    parts.frame.style.aspectRatio = `${width} / ${height}`;
    this.setAttribute("role", "article");
    this.setAttribute("aria-label", said.picture(this.#job.params.prompt.slice(0, 80)));
    fill(this, parts.frame, parts.bar, parts.state, parts.prompt, parts.actions);
  }

  #render(was) {
    const job = this.#job;
    const { steps_done: done, steps_total: total } = job.progress;
    this.dataset.state = job.state;
    this.#parts.bar.value = job.state === "succeeded" ? 1 : total ? done / total : 0;
    this.#parts.bar.hidden = !isUnderWay(job);
    this.#parts.bar.setAttribute("aria-label", said.steps(done, total));
    const line = status(job);
    if (this.#parts.state.textContent !== line) this.#parts.state.textContent = line;
    if (was?.state === job.state && was?.entry?.refusal === job.entry?.refusal) return;
    fill(this.#parts.actions, this.#actions());
    if (job.state === "succeeded") fill(this.#parts.frame, job.images.map((image) => this.#picture(image)));
    else if (job.state === "running") this.#preview();
    else fill(this.#parts.frame);
    this.#parts.frame.classList.toggle("many", job.images.length > 1);
  }

  #picture(image) {
    const open = () => this.#tell("open-picture", { job: this.#job, image });
    const name = said.picture(this.#job.params.prompt.slice(0, 80));
    const picture = new Picture(image.url, name, { width: image.width, height: image.height, thumbnail: true });
    return el("button", { type: "button", class: "picture", onclick: open }, picture);
  }

  async #preview() {
    if (this.#previewing || !this.isConnected || this.#job.state !== "running") return;
    this.#previewing = setTimeout(() => {
      this.#previewing = null;
      this.#preview();
    }, PREVIEW_MS);
    const index = this.#current();
    const found = await blob(`/v1/jobs/${this.#job.id}/images/${index}/preview`).catch(() => null);
    if (!found?.size || this.#job.state !== "running") return;
    const url = URL.createObjectURL(found);
    const image = el("img", { src: url, alt: said.preview, class: "preview", onload: () => URL.revokeObjectURL(url) });
    fill(this.#parts.frame, image);
  }

  /** The first image that is not done yet, by the steps that are. */
  #current() {
    const { steps_done: done, steps_total: total } = this.#job.progress;
    const images = this.#job.params.num_images;
    return total ? Math.min(images - 1, Math.floor((done * images) / total)) : 0;
  }

  #actions() {
    const { id, state } = this.#job;
    const reuse = async () => this.#tell("reuse", { job: this.#job, params: this.#job.params });
    const cancel = async () => jobs.take(await post(`/v1/jobs/${id}/cancel`));
    const retry = async () => jobs.take(await post(`/v1/jobs/${id}/retry`));
    const drop = async () => {
      await remove(`/v1/jobs/${id}`);
      this.remove();
    };
    if (state === "waiting") return ofWaiting(this, state, this.#job.entry);
    if (isUnderWay(this.#job)) return [acting(said.cancel, cancel, { disabled: !ACTIVE.has(state) })];
    if (state === "succeeded") return [acting(said.reuse, reuse)];
    return [acting(said.retry, retry), acting(said.reuse, reuse), acting(words.viewer.remove, drop)];
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { bubbles: true, detail }));
  }
}

function isUnderWay({ state }) {
  return state === "sending" || ACTIVE.has(state);
}

/** What can be done with a submission that waits to be sent. */
export function ofWaiting(element, state, { id, refusal }) {
  const tell = (name) => async () => element.dispatchEvent(new CustomEvent(name, { bubbles: true, detail: id }));
  if (state === "sending") return [];
  return [refusal && acting(words.outbox.again, tell("send-again")), acting(words.outbox.discard, tell("discard"))];
}

/** What a job's card says of it. */
export function status(job) {
  const { steps_done: done, steps_total: total } = job.progress;
  const outlook = job.outlook ?? {};
  const parts = [said.states[job.state] ?? job.state];
  if (job.state === "queued") parts.push(...waiting(outlook));
  if (job.state === "running") parts.push(said.steps(done, total));
  if (ACTIVE.has(job.state) && outlook.finish_s) parts.push(said.doneIn(said.seconds(outlook.finish_s)));
  if (ACTIVE.has(job.state) && job.attempt > 1) parts.push(said.attempt(job.attempt, job.max_attempts));
  if (job.error && ["failed", "waiting"].includes(job.state)) parts.push(job.error.message);
  if (job.state === "succeeded" && job.timings.render_s) parts.push(said.seconds(job.timings.render_s));
  return parts.join(" · ");
}

function waiting({ reason, position, start_s: start }) {
  const parts = [];
  if (reason && reason !== "waits_its_turn") parts.push(said.reasons[reason] ?? reason.replaceAll("_", " "));
  else if (Number.isInteger(position)) parts.push(said.position(position));
  if (start) parts.push(said.startsIn(said.seconds(start)));
  return parts;
}

customElements.define("job-card", JobCard);
