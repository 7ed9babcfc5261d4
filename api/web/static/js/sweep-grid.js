/** A batch as one grid: rows and columns with the values of its axes, each cell as far as its job is. */

import { blob, post } from "./api.js";
import { batches } from "./batches.js";
import { acting, download, el, fill } from "./dom.js";
import { fieldOf } from "./fields.js";
import { ofWaiting } from "./job-card.js";
import { jobs } from "./jobs.js";
import { Picture } from "./picture.js";
import { words } from "./words.js";

// The farm draws so many jobs on one contact sheet.
const ON_A_SHEET = 256;
const said = words.sweep;

/** A batch as a table, { across, down }, each axis { name, values } in words; or { across, captions }. Pure. */
export function layout({ sweep, total }) {
  const [names, lists] = [sweep.map(({ parameter }) => label(parameter)), sweep.map(spelled)];
  const combined = lists.reduce((count, values) => count * values.length, 1);
  if (lists.length > 1 && combined === total) {
    const cross = (cells, values) => cells.flatMap((cell) => values.map((value) => [...cell, value]));
    const down = lists.slice(0, -1).reduce(cross, [[]]).map((cell) => cell.join(", "));
    return { across: axis([names.at(-1)], lists.at(-1)), down: axis(names.slice(0, -1), down) };
  }
  // One axis, several that change together, or none at all.
  const caption = (_, at) => lists.map((values) => values[at]).join(", ");
  return { across: axis(names, []), captions: Array.from({ length: total }, caption) };
}

const axis = (names, values) => ({ name: names.join(", "), values });

function label(path) {
  const texts = { prompt: words.create.prompt, negative_prompt: words.create.negative };
  return texts[path] ?? words.fields[fieldOf(path)]?.[0] ?? path;
}

function spelled({ parameter, values }) {
  const names = words.options[fieldOf(parameter)] ?? (parameter === "schedule" ? words.schedules : {});
  return values.map((value) => names[value] ?? (value === null ? words.create.auto : plain(value)));
}

function plain(value) {
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

export class SweepGrid extends HTMLElement {
  #parts = null;
  #cells = [];

  /** Show { batch, cells } as they are now. `entry` is the submission while the farm has not answered it. */
  show({ batch, cells, entry, message = "" }) {
    this.batch = batch;
    this.cells = cells ?? new Map();
    if (!this.#parts) this.#build();
    this.dataset.state = batch.state;
    const { steps_done: done, steps_total: total } = batch.progress;
    this.#parts.bar.value = total ? done / total : 0;
    this.#parts.bar.hidden = batch.state !== "unfinished";
    const line = entry ? [words.job.states[batch.state], message].filter(Boolean).join(" · ") : tally(batch);
    if (this.#parts.state.textContent !== line) this.#parts.state.textContent = line;
    this.#act(entry);
    const known = [...this.cells.values()].find(Boolean)?.params ?? batch.shape;
    this.#cells.forEach((cell, index) => cell.show(this.cells.get(index), known));
  }

  /** The jobs in its cells, in order. */
  jobs() {
    return this.#cells.map((_, index) => this.cells.get(index));
  }

  #build() {
    const { batch } = this;
    const { across, down, captions } = layout(batch);
    const open = (picture) => this.#open(picture);
    this.#cells = Array.from({ length: batch.total }, (_, at) => new Cell(open, captions?.[at]));
    this.#parts = {
      bar: el("progress", { max: 1, value: 0, "aria-label": said.progress }),
      state: el("p", { class: "state", role: "status" }),
      actions: el("div", { class: "actions" }),
    };
    const title = batch.name ?? said.batch;
    this.setAttribute("role", "article");
    this.setAttribute("aria-label", title);
    fill(
      this,
      el("h3", {}, title),
      this.#parts.state,
      this.#parts.bar,
      this.#parts.actions,
      captions ? this.#row(across) : el("div", { class: "scroll" }, this.#table(across, down)),
    );
  }

  #row({ name }) {
    const figures = this.#cells.map(({ content, caption }) => el("figure", {}, content, caption));
    const axis = name && el("p", { class: "axis" }, `${name} →`);
    return el("div", { class: "sweep" }, axis, el("div", { class: "row" }, figures));
  }

  #table(across, down) {
    const head = (value) => el("th", { scope: "col", dir: "auto", title: value }, value);
    const row = (value, at) => {
      const cells = this.#cells.slice(at * across.values.length, (at + 1) * across.values.length);
      const side = el("th", { scope: "row", dir: "auto", title: value }, value);
      return el("tr", {}, side, cells.map(({ content }) => el("td", {}, content)));
    };
    const names = [
      el("th", { scope: "col", rowSpan: 2 }, `${down.name} ↓`),
      el("th", { scope: "colgroup", colSpan: across.values.length }, `${across.name} →`),
    ];
    const top = el("thead", {}, el("tr", {}, names), el("tr", {}, across.values.map(head)));
    return el("table", { class: "sweep" }, top, el("tbody", {}, down.values.map(row)));
  }

  #act(entry) {
    const { batch } = this;
    const now = `${batch.state} ${batch.counts.succeeded > 0} ${entry?.refusal ?? ""}`;
    if (this.#parts.actions.dataset.now === now) return;
    this.#parts.actions.dataset.now = now;
    fill(this.#parts.actions, entry ? ofWaiting(this, batch.state, entry) : this.#actions());
  }

  #actions() {
    const { id, state, counts } = this.batch;
    const cancel = async () => {
      batches.take(await post(`/v1/batches/${id}/cancel`));
      jobs.refresh();
    };
    const zip = async () => download(await blob(`/v1/batches/${id}/images.zip`), `${id}.zip`);
    return [
      state === "unfinished" && acting(said.cancel, cancel),
      counts.succeeded > 0 && acting(said.sheet, () => this.#sheets()),
      counts.succeeded > 0 && acting(said.zip, zip),
    ];
  }

  async #sheets() {
    const { id, total } = this.batch;
    const columns = Math.max(1, layout(this.batch).across.values.length);
    // Whole rows, so that each sheet has its labels.
    const step = columns > ON_A_SHEET ? ON_A_SHEET : Math.floor(ON_A_SHEET / columns) * columns;
    for (let start = 0; start < total; start += step) {
      download(await blob(`/v1/batches/${id}/sheet?start=${start}`), start ? `${id}-${start}.webp` : `${id}.webp`);
    }
  }

  #open(picture) {
    this.dispatchEvent(new CustomEvent("open-picture", { bubbles: true, detail: picture }));
  }
}

/** One cell of the grid. */
class Cell {
  #shown = "";

  constructor(open, caption) {
    this.open = open;
    this.content = el("div", { class: "cell" });
    this.caption = caption ? el("figcaption", { dir: "auto", title: caption }, caption) : null;
  }

  /** Show a job; undefined is not known yet, null was deleted. It has its shape before its pixels: nothing moves. */
  show(job, known) {
    const { width, height } = job?.params ?? known ?? { width: 1, height: 1 };
    const { steps_done: done, steps_total: total } = job?.progress ?? {};
    const now = `${job === null ? "removed" : (job?.state ?? "")} ${done} ${width} ${height}`;
    if (now === this.#shown) return;
    this.#shown = now;
    this.content.style.aspectRatio = `${width} / ${height}`;
    this.content.dataset.state = job?.state ?? "";
    this.content.classList.toggle("many", job?.images.length > 1);
    if (job?.state === "succeeded") fill(this.content, job.images.map((image) => this.#picture(job, image)));
    else if (job?.state === "running") fill(this.content, progress(done, total));
    else fill(this.content, el("small", { title: job?.error?.message }, word(job)));
  }

  #picture(job, image) {
    const name = words.job.picture(job.params.prompt.slice(0, 80));
    const picture = new Picture(image.url, name, { width: image.width, height: image.height, thumbnail: true });
    const open = () => this.open({ job, image });
    return el("button", { type: "button", class: "picture", "aria-label": name, onclick: open }, picture);
  }
}

function word(job) {
  if (job === null) return said.removed;
  if (!job) return "";
  return job.error?.message ?? words.job.states[job.state];
}

function progress(done, total) {
  const bar = el("progress", { max: 1, value: total ? done / total : 0, "aria-label": words.job.steps(done, total) });
  return [el("small", {}, words.job.states.running), bar];
}

function tally({ counts, total, removed }) {
  const parts = [said.done(counts.succeeded, total)];
  for (const state of ["running", "queued", "failed", "canceled", "expired"]) {
    if (counts[state]) parts.push(said.count(counts[state], words.job.states[state].toLowerCase()));
  }
  if (removed) parts.push(said.count(removed, said.removed));
  return parts.join(" · ");
}

customElements.define("sweep-grid", SweepGrid);
