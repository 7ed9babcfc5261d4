/** The page that makes pictures: the form on one side, what becomes of it on the other. */

import { get, post } from "./api.js";
import { control, promptBox } from "./controls.js";
import { announce, el, fill } from "./dom.js";
import { FIELDS, fresh, fromParams, fromQuery, RATIOS, sides, submission, toQuery } from "./fields.js";
import "./job-card.js";
import { isOlder, jobs } from "./jobs.js";
import "./picture-input.js";
import { params as readParams, texts } from "./png.js";
import { presetBar } from "./presets.js";
import { chunks, emphasized } from "./prompts.js";
import { sweepPanel } from "./sweep.js";
import { openViewer } from "./viewer.js";
import { words } from "./words.js";

const said = words.create;
const LAST = "farm.form";
const MORE = ["clip_skip", "vae", "upscale", "variation_seed", "variation_strength", "priority"];
const HIRES = ["hires_scale", "hires_steps", "hires_strength", "hires_upscaler"];
const FROM_PICTURE = ["strength", "resize_mode", "mask_blur", "mask_fill", "only_masked", "padding"];

class CreatePage extends HTMLElement {
  #controls = {};
  #samplers = [];
  #loras = [];
  #known = { loras: [], embeddings: [] };
  #lastSeed = null;
  #stop = null;
  #cards = new Map();

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
    values.loras = this.#loras;
    return values;
  }

  set values(values) {
    for (const [name, one] of Object.entries(this.#controls)) one.write(values[name]);
    this.hires.querySelector("input").checked = values.hires;
    this.#loras = values.loras.map((lora) => ({ ...lora }));
    this.#schedules();
    this.#controls.schedule.write(values.schedule);
    this.#showLoras();
    this.#changed();
  }

  #build() {
    const changed = (name) => {
      if (name === "sampler") this.#schedules();
      this.#changed();
    };
    for (const name of Object.keys(FIELDS)) this.#controls[name] = control(name, changed);
    const box = (name, rows) => (this.#controls[name] = promptBox(name, { rows, changed, emphasized, chunks }));
    const show = (names) => names.map((name) => this.#controls[name].element);
    this.picture = el("picture-input", { onpicture: (event) => this.#onPicture(event.detail) });
    this.loraList = el("ul", { class: "chips" });
    this.loraChoice = this.#picker(said.addLora, (name) => this.#addLora(name));
    this.embeddingChoice = this.#picker(said.addEmbedding, (name) => this.#insert(name));
    this.weights = el("fieldset", { hidden: true }, el("legend", {}, said.loras), this.loraList, this.loraChoice, this.embeddingChoice);
    this.hires = this.#switch(said.hires, said.hiresHelp, show(HIRES));
    this.fromPicture = el("div", { class: "grid", hidden: true }, show(FROM_PICTURE));
    this.form = el(
      "form",
      { class: "form", noValidate: true, onsubmit: (event) => this.#submit(event) },
      presetBar({ read: () => this.values, write: (values) => (this.values = { ...this.values, ...values }) }),
      show(["checkpoint"]),
      box("prompt", 4).element,
      box("negative_prompt", 2).element,
      el("div", { class: "go" }, el("button", { type: "submit", class: "primary" }, said.generate), el("kbd", {}, said.generateHint),
        el("button", { type: "button", class: "plain", onclick: () => (this.values = fresh()) }, said.reset)),
      el("div", { class: "grid" }, show(["steps", "guidance_scale", "sampler", "schedule", "width", "height"])),
      this.#ratios(),
      el("div", { class: "grid" }, show(["seed", "num_images"])),
      this.#dice(),
      this.weights,
      el("fieldset", {}, el("legend", {}, said.initImage), this.picture, this.fromPicture),
      this.hires,
      el("details", {}, el("summary", {}, said.more), el("div", { class: "grid" }, show(MORE))),
      el("details", {}, el("summary", {}, said.sweep), sweepPanel({ read: () => this.values, pictures: () => this.picture.pictures(), run: (batch) => this.#sweep(batch) })),
    );
    this.list = el("div", { class: "cards" });
    this.empty = el("p", { class: "hint" }, said.nothing);
    fill(this, this.form, el("section", { class: "results", "aria-label": said.jobs }, el("h2", {}, said.jobs), this.empty, this.list));
    this.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.form.requestSubmit();
    });
    this.addEventListener("dragover", (event) => event.preventDefault());
    this.addEventListener("drop", (event) => this.#onDrop(event));
    this.addEventListener("reuse", (event) => (this.values = fromParams(event.detail.params)));
    this.addEventListener("open-picture", ({ detail }) => openViewer(detail, { list: () => shownPictures(), reuse: (params) => (this.values = fromParams(params)), send: (file) => this.picture.offer(file) }));
    this.#choices();
  }

  async #choices() {
    const asked = ["checkpoints", "samplers", "vaes", "loras", "embeddings"];
    const found = await Promise.all(asked.map((name) => get(`/v1/${name}`).catch(() => null)));
    const [checkpoints, samplers, vaes, loras, embeddings] = found;
    const named = (list) => (list ?? []).map(({ name }) => ({ value: name, label: name }));
    this.#controls.checkpoint.offer([{ value: "", label: words.options.auto }, ...named(checkpoints?.checkpoints)]);
    this.#samplers = samplers?.samplers ?? [];
    this.#controls.sampler.offer(this.#samplers.map(({ name, label }) => ({ value: name, label })));
    this.#controls.vae.offer([{ value: "", label: words.options.own }, ...named(vaes?.weights)]);
    this.#known = { loras: loras?.weights ?? [], embeddings: embeddings?.weights ?? [] };
    offerWeights(this.loraChoice, this.#known.loras);
    offerWeights(this.embeddingChoice, this.#known.embeddings);
    this.weights.hidden = this.loraChoice.hidden && this.embeddingChoice.hidden;
    const query = location.hash.split("?").slice(1).join("?");
    this.values = fromQuery(query || (sessionStorage.getItem(LAST) ?? ""));
  }

  #schedules() {
    const sampler = this.#samplers.find(({ name }) => name === this.#controls.sampler.read());
    if (!sampler) return;
    const options = sampler.schedules.map((name) => ({ value: name, label: name.replaceAll("_", " ") }));
    const before = this.#controls.schedule.read();
    this.#controls.schedule.offer([{ value: "", label: `${words.options.auto} (${sampler.schedules[0].replaceAll("_", " ")})` }, ...options]);
    if (before && !sampler.schedules.includes(before)) announce(said.impossiblePair);
  }

  #changed() {
    const query = toQuery(this.values);
    sessionStorage.setItem(LAST, query);
    if (location.hash.startsWith("#create") || location.hash === "") history.replaceState(null, "", query ? `#create?${query}` : "#create");
  }

  #ratios() {
    const set = (ratio) => {
      const [width, height] = sides(ratio, this.#controls.width.read(), this.#controls.height.read());
      this.#controls.width.write(width);
      this.#controls.height.write(height);
      this.#changed();
    };
    const swap = () => set([this.#controls.height.read(), this.#controls.width.read()]);
    return el(
      "div",
      { class: "row", role: "group", "aria-label": `${words.fields.width[0]} : ${words.fields.height[0]}` },
      RATIOS.map((ratio) => el("button", { type: "button", class: "plain", onclick: () => set(ratio) }, ratio.join(":"))),
      el("button", { type: "button", class: "plain", onclick: swap }, said.swap),
    );
  }

  #dice() {
    const write = (seed) => {
      this.#controls.seed.write(seed);
      this.#changed();
    };
    const lock = () => {
      const last = jobs.list()[0]?.seeds?.[0] ?? this.#lastSeed;
      if (last !== null && last !== undefined) write(last);
    };
    return el(
      "div",
      { class: "row" },
      el("button", { type: "button", class: "plain", onclick: () => write(null) }, said.dice),
      el("button", { type: "button", class: "plain", onclick: lock }, said.lock),
    );
  }

  #switch(label, help, inside) {
    const grid = el("div", { class: "grid" }, inside);
    const input = el("input", { type: "checkbox", onchange: () => this.#changed() });
    return el("fieldset", { class: "switch" }, el("legend", {}, el("label", {}, input, " ", label)), el("small", {}, help), grid);
  }

  #picker(label, pick) {
    const choice = el("select", { "aria-label": label, hidden: true });
    choice.addEventListener("change", () => {
      pick(choice.value);
      choice.value = "";
    });
    choice.append(el("option", { value: "" }, label));
    return choice;
  }

  #addLora(name) {
    if (!name || this.#loras.some((lora) => lora.name === name)) return;
    this.#loras.push({ name, weight: 1 });
    this.#showLoras();
    this.#changed();
  }

  #showLoras() {
    const item = (lora) => {
      const reweigh = (event) => {
        lora.weight = Math.min(10, Math.max(-10, Number(event.target.value) || 0));
        this.#changed();
      };
      const drop = () => {
        this.#loras = this.#loras.filter((one) => one !== lora);
        this.#showLoras();
        this.#changed();
      };
      return el(
        "li",
        {},
        el("span", {}, lora.name),
        el("input", { type: "number", min: -10, max: 10, step: 0.05, value: lora.weight, "aria-label": said.weight(lora.name), onchange: reweigh }),
        el("button", { type: "button", class: "plain", "aria-label": said.remove(lora.name), onclick: drop }, "×"),
      );
    };
    fill(this.loraList, this.#loras.map(item));
  }

  #insert(name) {
    const { node } = this.#controls.prompt;
    if (!name) return;
    node.setRangeText(`${node.selectionStart ? ", " : ""}${name}`, node.selectionStart, node.selectionEnd, "end");
    this.#controls.prompt.write(node.value);
    this.#changed();
    node.focus();
  }

  #onPicture(size) {
    this.fromPicture.hidden = !size;
    this.hires.disabled = Boolean(size);
    if (!size) return;
    const side = (pixels) => Math.min(2048, Math.max(64, Math.round(pixels / 8) * 8));
    const shrink = Math.min(1, 768 / Math.max(size.width, size.height));
    this.#controls.width.write(side(size.width * shrink));
    this.#controls.height.write(side(size.height * shrink));
    this.#changed();
  }

  #onPaste = (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"));
    if (file) this.#take(file);
  };

  #onDrop(event) {
    event.preventDefault();
    this.#take(event.dataTransfer.files[0]);
  }

  /** A PNG with parameters fills the form; any other picture is one to start from. */
  async #take(file) {
    if (!file) return;
    const found = file.size <= 32 * 2 ** 20 ? texts(await file.arrayBuffer()) : null;
    const params = readParams(found, this.#samplers);
    if (params) {
      this.values = fromParams(params);
      announce(said.dropped);
    } else if (await this.picture.offer(file)) announce(said.noParameters);
  }

  async #submit(event) {
    event.preventDefault();
    await this.#send(submission(this.values, await this.picture.pictures()));
    // On a narrow screen the cards lie below the form: what was asked for must not come unseen.
    if (this.list.getBoundingClientRect().top > innerHeight) this.list.parentElement.scrollIntoView();
  }

  async #send(body) {
    try {
      const job = await post("/v1/jobs", body, once());
      this.#lastSeed = job.params.seed;
      jobs.take(job);
    } catch (error) {
      announce(error.message, { error: true });
      return;
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

  #onGone = (event) => {
    this.#cards.get(event.detail)?.remove();
    this.#cards.delete(event.detail);
    this.empty.hidden = this.#cards.size > 0;
  };

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
  return { headers: { "Idempotency-Key": crypto.randomUUID() } };
}

function offerWeights(choice, weights) {
  fill(choice, choice.firstChild, weights.map(({ name, alias }) => el("option", { value: name }, alias ? `${name} (${alias})` : name)));
  choice.hidden = weights.length === 0;
}

function shownPictures() {
  return jobs.list().filter((job) => job.state === "succeeded").flatMap((job) => job.images.map((image) => ({ job, image })));
}

customElements.define("create-page", CreatePage);

export function page() {
  return new CreatePage();
}
