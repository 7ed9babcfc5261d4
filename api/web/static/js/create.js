/** The page that makes pictures: the form on one side, what becomes of it on the other. */

import { get, post, put, uuid } from "./api.js";
import { control, promptBox } from "./controls.js";
import { announce, el, fill } from "./dom.js";
import { FIELDS, fresh, fromParams, fromQuery, submission, TEXTS, tidied, toQuery } from "./fields.js";
import "./job-card.js";
import { isOlder, jobs, sending } from "./jobs.js";
import "./picture-input.js";
import { isInfotext, params as readParams, texts } from "./png.js";
import { presetBar } from "./presets.js";
import { taken } from "./sent.js";
import { ratioRow, seedRow } from "./shortcuts.js";
import { sweepPanel } from "./sweep.js";
import { tokenCounter } from "./token-meter.js";
import { openViewer } from "./viewer.js";
import { weightsPicker } from "./weights.js";
import { words } from "./words.js";

const said = words.create;
const LAST = "farm.form";
const MAIN = ["steps", "guidance_scale", "sampler", "schedule", "width", "height"];
const MORE = ["clip_skip", "vae", "upscale", "variation_seed", "variation_strength", "priority"];
const HIRES = ["hires_scale", "hires_steps", "hires_strength", "hires_upscaler"];
const FROM_PICTURE = ["strength", "resize_mode", "mask_blur", "mask_fill", "only_masked", "padding"];
const PNG_BYTES = 32 * 2 ** 20;

class CreatePage extends HTMLElement {
  #controls = {};
  #samplers = [];
  #lastSeed = undefined;
  #stop = null;
  #cards = new Map();
  #count = tokenCounter(
    () => Object.fromEntries([...TEXTS, "steps"].map((name) => [name, this.#controls[name].read()])),
    () => Object.fromEntries(TEXTS.map((name) => [name, this.#controls[name]])),
  );

  connectedCallback() {
    if (!this.firstChild) this.#build();
    this.#stop = jobs.watch();
    jobs.addEventListener("job", this.#onJob);
    jobs.addEventListener("gone", this.#onGone);
    document.addEventListener("paste", this.#onPaste);
    for (const job of jobs.list().reverse()) this.#card(job);
  }

  disconnectedCallback() {
    this.#stop?.();
    jobs.removeEventListener("job", this.#onJob);
    jobs.removeEventListener("gone", this.#onGone);
    document.removeEventListener("paste", this.#onPaste);
  }

  /** Take in another query of the address, as when settings are reused. */
  revisit(query) {
    if (query && query !== toQuery(this.values)) this.values = fromQuery(query);
  }

  get values() {
    const values = fresh();
    for (const [name, one] of Object.entries(this.#controls)) values[name] = one.read();
    values.hires = this.hires.querySelector("input").checked;
    values.loras = this.weights.read();
    return values;
  }

  set values(values) {
    for (const [name, one] of Object.entries(this.#controls)) one.write(values[name]);
    this.hires.querySelector("input").checked = values.hires;
    this.weights.write(values.loras);
    this.#schedules();
    this.#controls.schedule.write(values.schedule);
    this.#changed();
  }

  #build() {
    const changed = (name) => {
      if (name === "sampler") this.#schedules();
      if (name === "steps") this.#count();
      this.#changed();
    };
    for (const name of Object.keys(FIELDS)) this.#controls[name] = control(name, changed);
    for (const name of TEXTS) this.#controls[name] = promptBox(name, { changed, edited: this.#count });
    this.picture = el("picture-input", { onpicture: (event) => this.#onPicture(event.detail) });
    this.weights = weightsPicker({ insert: (name) => this.#insert(name), changed: () => this.#changed() });
    this.hires = this.#switch(said.hires, said.hiresHelp, HIRES);
    this.fromPicture = this.#grid(FROM_PICTURE, { hidden: true });
    this.form = this.#form();
    this.list = el("div", { class: "cards" });
    this.empty = el("p", { class: "hint" }, said.nothing);
    const heading = el("h2", {}, said.jobs);
    const results = el("section", { class: "results", "aria-label": said.jobs }, heading, this.empty, this.list);
    fill(this, this.form, results);
    this.#listen();
    const query = location.hash.split("?").slice(1).join("?");
    this.values = fromQuery(query || (sessionStorage.getItem(LAST) ?? ""));
    this.#choices();
  }

  #form() {
    const changed = () => this.#changed();
    const last = () => jobs.list()[0]?.seeds?.[0] ?? this.#lastSeed;
    const pictures = () => this.picture.pictures();
    const sweep = { read: () => this.values, pictures, run: (batch) => this.#sweep(batch) };
    return el(
      "form",
      { class: "form", noValidate: true, onsubmit: (event) => this.#submit(event) },
      presetBar({ read: () => this.values, write: (values) => (this.values = { ...this.values, ...values }) }),
      ["checkpoint", ...TEXTS].map((name) => this.#controls[name].element),
      this.#go(),
      this.#grid(MAIN),
      ratioRow(this.#controls, changed),
      this.#grid(["seed", "num_images"]),
      seedRow(this.#controls, last, changed),
      this.weights.element,
      el("fieldset", {}, el("legend", {}, said.initImage), this.picture, this.fromPicture),
      this.hires,
      el("details", {}, el("summary", {}, said.more), this.#grid(MORE)),
      el("details", {}, el("summary", {}, said.sweep), sweepPanel(sweep)),
    );
  }

  #go() {
    return el(
      "div",
      { class: "go" },
      el("button", { type: "submit", class: "primary" }, said.generate),
      el("kbd", {}, said.generateHint),
      el("button", { type: "button", class: "plain", onclick: () => (this.values = fresh()) }, said.reset),
    );
  }

  #grid(names, props = {}) {
    return el("div", { class: "grid", ...props }, names.map((name) => this.#controls[name].element));
  }

  #switch(label, help, names) {
    const input = el("input", { type: "checkbox", onchange: () => this.#changed() });
    const legend = el("legend", {}, el("label", {}, input, " ", label));
    return el("fieldset", { class: "switch" }, legend, el("small", {}, help), this.#grid(names));
  }

  #listen() {
    this.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.form.requestSubmit();
    });
    this.addEventListener("dragover", (event) => event.preventDefault());
    this.addEventListener("drop", (event) => this.#onDrop(event));
    const reuse = (params) => (this.values = fromParams(params));
    this.addEventListener("reuse", (event) => reuse(event.detail.params));
    const send = (file) => this.picture.offer(file);
    this.addEventListener("open-picture", ({ detail }) => openViewer(detail, { list: shownPictures, reuse, send }));
  }

  async #choices() {
    const asked = ["checkpoints", "samplers", "vaes", "loras", "embeddings"];
    const found = await Promise.all(asked.map((name) => get(`/v1/${name}`).catch(() => null)));
    const [checkpoints, samplers, vaes, loras, embeddings] = found;
    // What was typed meanwhile stays.
    const { values } = this;
    const named = (list) => (list ?? []).map(({ name }) => ({ value: name, label: name }));
    this.#controls.checkpoint.offer([{ value: "", label: said.auto }, ...named(checkpoints?.checkpoints)]);
    this.#samplers = samplers?.samplers ?? [];
    this.#controls.sampler.offer(this.#samplers.map(({ name, label }) => ({ value: name, label })));
    this.#controls.vae.offer([{ value: "", label: said.own }, ...named(vaes?.weights)]);
    this.weights.offer({ loras: loras?.weights ?? [], embeddings: embeddings?.weights ?? [] });
    this.values = values;
    await this.picture.offer(taken());
  }

  #schedules() {
    const sampler = this.#samplers.find(({ name }) => name === this.#controls.sampler.read());
    if (!sampler) return;
    const options = sampler.schedules.map((name) => ({ value: name, label: words.schedules[name] ?? name }));
    const before = this.#controls.schedule.read();
    const auto = { value: "", label: `${said.auto} (${options[0].label})` };
    this.#controls.schedule.offer([auto, ...options]);
    if (before && !sampler.schedules.includes(before)) announce(said.impossiblePair);
  }

  #changed() {
    const query = toQuery(this.values);
    sessionStorage.setItem(LAST, query);
    const isHere = location.hash.startsWith("#create") || location.hash === "";
    if (isHere) history.replaceState(null, "", query ? `#create?${query}` : "#create");
  }

  /** Put a word into the prompt at the cursor, parted by a comma from what stands before it. */
  #insert(name) {
    const { node, write } = this.#controls.prompt;
    const { selectionStart: start, selectionEnd: end, value } = node;
    const before = value.slice(0, start);
    const parting = before.trim() && !/[,(\[]\s*$/.test(before) ? ", " : "";
    node.setRangeText(`${parting}${name}`, start, end, "end");
    const cursor = node.selectionEnd;
    write(node.value);
    this.#changed();
    node.focus();
    node.setSelectionRange(cursor, cursor);
  }

  #onPicture(size) {
    this.fromPicture.hidden = !size;
    this.hires.disabled = Boolean(size);
    if (!size) return;
    const shrink = Math.min(1, 768 / Math.max(size.width, size.height));
    this.#controls.width.write(tidied("width", size.width * shrink));
    this.#controls.height.write(tidied("height", size.height * shrink));
    this.#changed();
  }

  #onPaste = (event) => {
    const data = event.clipboardData;
    const file = [...(data?.files ?? [])].find(({ type }) => type.startsWith("image/"));
    const text = data?.getData("text/plain") ?? "";
    if (file) this.#take(file);
    else if (isInfotext(text)) {
      event.preventDefault();
      this.#fillIn({ parameters: text });
    }
  };

  #onDrop(event) {
    event.preventDefault();
    this.#take(event.dataTransfer.files[0]);
  }

  /** A PNG with parameters fills the form; any other picture is one to start from. */
  async #take(file) {
    if (!file) return;
    const found = file.size <= PNG_BYTES ? texts(await file.arrayBuffer()) : null;
    if (!this.#fillIn(found) && (await this.picture.offer(file))) announce(said.noParameters);
  }

  /** Fill the form from texts as PNGs carry them; returns whether there were parameters in them. */
  #fillIn(found) {
    const params = readParams(found, this.#samplers);
    if (!params) return false;
    // Other tools name checkpoints that the farm may not have; what it serves by itself does then.
    const isServed = [...this.#controls.checkpoint.node.options].some(({ value }) => value === params.checkpoint);
    this.values = fromParams({ ...params, checkpoint: isServed ? params.checkpoint : "" });
    announce(said.filled);
    return true;
  }

  async #submit(event) {
    event.preventDefault();
    const [id, values] = [uuid(), this.values];
    // At once, as one expects of a press; the farm may answer late, and other cards would move then for no seen reason.
    this.#card(sending(id, submission(values)));
    // On a narrow screen the cards lie below the form: what was asked for must not come unseen.
    if (this.list.getBoundingClientRect().top > innerHeight) this.list.parentElement.scrollIntoView();
    await this.#send(id, submission(values, await this.picture.pictures()));
  }

  async #send(id, body) {
    try {
      const job = await put(`/v1/jobs/${id}`, body);
      this.#lastSeed = job.params.seed;
      jobs.take(job);
    } catch (error) {
      announce(error.message, { error: true });
      this.#forget(id);
    }
    jobs.refresh();
  }

  /** All cells together, or none. */
  async #sweep(batch) {
    try {
      await post("/v1/batches", { name: said.sweepTitle, ...batch }, once());
    } catch (error) {
      announce(error.message, { error: true });
    }
    jobs.refresh();
  }

  #onJob = (event) => this.#card(event.detail);

  #onGone = (event) => this.#forget(event.detail);

  #forget(id) {
    this.#cards.get(id)?.remove();
    this.#cards.delete(id);
    this.empty.hidden = this.#cards.size > 0;
  }

  #card(job) {
    let card = this.#cards.get(job.id);
    if (!card) {
      card = el("job-card", { dataset: { job: job.id } });
      this.#cards.set(job.id, card);
      const older = [...this.list.children].find((other) => isOlder(other.job, job));
      this.list.insertBefore(card, older ?? null);
    }
    card.job = job;
    this.empty.hidden = true;
  }
}

/** A key of its own makes a submission that is repeated one. */
function once() {
  return { headers: { "Idempotency-Key": uuid() } };
}

function shownPictures() {
  const done = jobs.list().filter((job) => job.state === "succeeded");
  return done.flatMap((job) => job.images.map((image) => ({ job, image })));
}

customElements.define("create-page", CreatePage);

export function page() {
  return new CreatePage();
}
