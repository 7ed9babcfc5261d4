/** The page that makes pictures: the form on one side, what becomes of it on the other. */

import { blob, get, uuid } from "./api.js";
import { checkpointChoices } from "./checkpoints.js";
import { control, promptBox } from "./controls.js";
import { announce, el, fill } from "./dom.js";
import * as draft from "./draft.js";
import { FIELDS, fresh, fromParams, fromQuery, submission, TEXTS, tidied, toQuery, unheld } from "./fields.js";
import { jobs } from "./jobs.js";
import "./picture-input.js";
import { isInfotext, params as readParams, texts } from "./png.js";
import { presetBar } from "./presets.js";
import { inputPaths } from "./recipes.js";
import "./results.js";
import * as sent from "./sent.js";
import { ratioRow, seedRow } from "./shortcuts.js";
import { sweepPanel, template } from "./sweep.js";
import { tokenCounter } from "./token-meter.js";
import { openViewer } from "./viewer.js";
import { weightsPicker } from "./weights.js";
import { words } from "./words.js";

const said = words.create;
const LAST = "farm.form";
const MAIN = ["steps", "guidance_scale", "sampler", "schedule", "width", "height"];
const MORE = ["clip_skip", "vae", "upscale", "variation_seed", "variation_strength", "priority"];
const HIRES = ["hires_scale", "hires_steps", "hires_strength", "hires_upscaler", "hires_checkpoint"];
const FROM_PICTURE = ["strength", "resize_mode", "mask_blur", "mask_fill", "only_masked", "padding"];
const PNG_BYTES = 32 * 2 ** 20;
// What stands in for upscalers of other tools.
const OTHER_UPSCALER = "lanczos";

class CreatePage extends HTMLElement {
  #controls = {};
  #samplers = [];
  #turn = 0;
  #reused = 0;
  #keeping = Promise.resolve();
  #isKept = true;
  #count = tokenCounter(
    () => Object.fromEntries([...TEXTS, "steps"].map((name) => [name, this.#controls[name].read()])),
    () => Object.fromEntries(TEXTS.map((name) => [name, this.#controls[name]])),
  );

  connectedCallback() {
    if (!this.firstChild) this.#build();
    document.addEventListener("paste", this.#onPaste);
  }

  disconnectedCallback() {
    document.removeEventListener("paste", this.#onPaste);
  }

  /** Take in what was sent meanwhile, or another query of the address. */
  revisit(query) {
    const { file, job, params } = sent.taken();
    if (job) this.#reuse(job, params);
    else if (file) this.picture.offer(file);
    else if (query && query !== toQuery(this.values)) this.values = fromQuery(query);
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
    const pictured = { onpicture: (event) => this.#onPicture(event.detail), onkept: () => this.#keep() };
    this.picture = el("picture-input", pictured);
    this.weights = weightsPicker({ insert: (name) => this.#insert(name), changed: () => this.#changed() });
    this.hires = this.#switch(said.hires, said.hiresHelp, HIRES);
    this.fromPicture = this.#grid(FROM_PICTURE, { hidden: true });
    this.form = this.#form();
    this.results = el("farm-results");
    fill(this, this.form, this.results);
    this.#listen();
    const query = location.hash.split("?").slice(1).join("?");
    this.values = fromQuery(query || (sessionStorage.getItem(LAST) ?? ""));
    this.#restore();
  }

  #form() {
    const changed = () => this.#changed();
    const last = () => jobs.list()[0]?.seeds?.[0];
    const sweep = { read: () => this.values, run: (grid) => this.#sweep(grid) };
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
    // While another page is still being loaded, this one is shown but left: the last wish leads back to it.
    const reuse = (job, params) => (isHere() ? this.#reuse(job, params) : sent.reuse(job, params));
    this.addEventListener("reuse", ({ detail }) => reuse(detail.job, detail.params));
    const send = (file) => (isHere() ? this.picture.offer(file) : sent.send(file));
    const list = () => this.results.pictures();
    this.addEventListener("open-picture", ({ detail }) => openViewer(detail, { list, reuse, send }));
  }

  async #choices() {
    const asked = ["checkpoints", "samplers", "vaes", "loras", "embeddings"];
    const found = await Promise.all(asked.map((name) => get(`/v1/${name}`).catch(() => null)));
    const [checkpoints, samplers, vaes, loras, embeddings] = found;
    // What was typed meanwhile stays.
    const { values } = this;
    const named = (list) => (list ?? []).map(({ name }) => ({ value: name, label: name }));
    const offered = checkpointChoices(checkpoints);
    this.#controls.checkpoint.offer(offered);
    const others = offered.filter(({ value }) => value);
    this.#controls.hires_checkpoint.offer([{ value: "", label: said.same }, ...others]);
    this.#samplers = samplers?.samplers ?? [];
    this.#controls.sampler.offer(this.#samplers.map(({ name, label }) => ({ value: name, label })));
    this.#controls.vae.offer([{ value: "", label: said.own }, ...named(vaes?.weights)]);
    this.weights.offer({ loras: loras?.weights ?? [], embeddings: embeddings?.weights ?? [] });
    this.values = values;
  }

  /** Show the form as this tab left it, or with what another page has sent. */
  async #restore() {
    const turn = this.#turn;
    const choices = this.#choices();
    const { file, job, params } = sent.taken();
    const kept = job || file ? null : await draft.restored();
    // Another picture would set the size anew; this one's stands in the address.
    const { width, height } = this.values;
    const isRestored = kept && turn === this.#turn && (await this.picture.restore(kept));
    if (isRestored) this.values = { ...this.values, width, height };
    await choices;
    if (job) await this.#reuse(job, params);
    else await this.picture.offer(file);
  }

  /** Keep the picture and mask for the next time that the form is opened here. */
  #keep() {
    const turn = (this.#turn += 1);
    if (!this.picture.isFilled) {
      draft.forget();
      this.#isKept = true;
    }
    this.#keeping = this.#keeping.then(async () => {
      const kept = await this.picture.kept();
      if (!kept || turn !== this.#turn) return; // what holds by now is kept behind it
      const isKept = await draft.save(kept);
      if (!isKept && this.#isKept) announce(said.notKept);
      this.#isKept = isKept;
    });
  }

  /** Fill the form with what made a job, pictures included, and say what of it is not to be had. */
  async #reuse(job, params) {
    const turn = (this.#reused += 1);
    const lost = unheld(params).map((name) => said.unheld[name]);
    const found = params.init_image ? await inputs(job, params) : null;
    if (turn !== this.#reused) return; // another one was wanted meanwhile
    if (found) await this.picture.restore(found);
    else if (this.picture.isFilled) this.picture.clear();
    if (found && params.inpaint?.mask_invert) this.picture.invert();
    this.values = { ...fromParams(params), priority: job.priority };
    announce(lost.length ? said.lost(lost) : said.filled);
    if (this.form.getBoundingClientRect().bottom < 0) this.form.scrollIntoView();
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
    if (isHere()) history.replaceState(null, "", query ? `#create?${query}` : "#create");
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
    const { options } = this.#controls.checkpoint.node;
    const isServed = (name) => [...options].some(({ value, disabled }) => value === name && !disabled);
    const { hires } = params;
    const isKnown = !hires || FIELDS.hires_upscaler.options.includes(hires.upscaler);
    const filled = isKnown ? params : { ...params, hires: { ...hires, upscaler: OTHER_UPSCALER } };
    const values = fromParams(filled);
    const missing = ["checkpoint", "hires_checkpoint"].filter((name) => values[name] && !isServed(values[name]));
    this.values = { ...values, ...Object.fromEntries(missing.map((name) => [name, ""])) };
    announce(said.filled);
    for (const name of new Set(missing.map((one) => values[one]))) announce(said.otherCheckpoint(name));
    if (!isKnown) announce(said.otherUpscaler(hires.upscaler, words.options.hires_upscaler[OTHER_UPSCALER]));
    if (params.init_image) announce(said.noInputs);
    return true;
  }

  async #submit(event) {
    event.preventDefault();
    const { values } = this;
    const body = async () => submission(values, await this.picture.pictures());
    await this.results.submit({ id: uuid(), kind: "job", about: submission(values), body });
  }

  /** All cells together, or none. */
  async #sweep({ values, grid }) {
    const sweep = Object.entries(grid).map(([parameter, list]) => ({ parameter, values: list }));
    const total = sweep.reduce((count, axis) => count * axis.values.length, 1);
    const [name, shape] = [said.sweepTitle, { width: values.width, height: values.height }];
    const body = async () => ({ name, template: template(values, grid, await this.picture.pictures()), grid });
    await this.results.submit({ id: uuid(), kind: "batch", about: { name, sweep, total, shape }, body });
  }
}

/** The pictures that a job started from; null, with the reason said, where they are not to be had. */
async function inputs(job, params) {
  const named = inputPaths(params, job.id);
  try {
    const [file, mask] = await Promise.all(Object.values(named).map((path) => blob(path)));
    return { file, mask, named };
  } catch (error) {
    announce(said.inputsLost(error.message), { error: true });
    return null;
  }
}

customElements.define("create-page", CreatePage);

/** Whether the address is still the form's: it changes before the page does. */
function isHere() {
  return location.hash === "" || /^#create(\?|$)/.test(location.hash);
}

export function page() {
  return new CreatePage();
}
