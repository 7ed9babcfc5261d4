/** LoRAs with their weights, and embeddings that go into the prompt. */

import { announce, el, fill, freshId } from "./dom.js";
import { limits } from "./limits.js";
import { words } from "./words.js";

const said = words.create;
const WEIGHT = limits.LoraChoice.weight;
const MOST = limits.Submission.loras.maxItems;

/** A fieldset: `offer` what there is, `read` and `write` the LoRAs chosen. `insert` puts a word into the prompt. */
export function weightsPicker({ insert, changed }) {
  let chosen = [];
  const list = el("ul", { class: "chips" });
  const item = (lora) => chip(lora, { changed, drop: () => keep(chosen.filter((one) => one !== lora)) });
  const show = () => fill(list, chosen.map(item));
  const keep = (loras) => {
    chosen = loras;
    show();
    changed();
  };
  const add = (name) => {
    if (chosen.some((lora) => lora.name === name)) return;
    if (chosen.length === MOST) announce(said.tooManyLoras(MOST), { error: true });
    else keep([...chosen, { name, weight: WEIGHT.default }]);
  };
  const loras = picker(said.addLora, add);
  const embeddings = picker(said.addEmbedding, insert);
  const pickers = el("div", { class: "row" }, loras, embeddings);
  const element = el("fieldset", { hidden: true }, el("legend", {}, said.loras), list, pickers);
  const tell = () => (element.hidden = loras.hidden && embeddings.hidden && !chosen.length);
  return {
    element,
    offer(known) {
      options(loras, known.loras, ({ name, alias }) => (alias ? `${name} (${alias})` : name));
      options(embeddings, known.embeddings, ({ name, vectors }) => (vectors ? said.embedding(name, vectors) : name));
      tell();
    },
    read: () => chosen,
    write(values) {
      chosen = values.map((lora) => ({ ...lora }));
      show();
      tell();
    },
  };
}

function chip(lora, { changed, drop }) {
  const id = freshId("lora");
  const range = { min: WEIGHT.minimum, max: WEIGHT.maximum, step: 0.05, "aria-label": said.weight(lora.name) };
  const number = el("input", { id, type: "number", ...range, value: lora.weight });
  // Where weights usually lie.
  const near = { min: -1, max: 2, step: 0.05, tabIndex: -1, "aria-hidden": "true" };
  const slider = el("input", { type: "range", ...near, value: lora.weight });
  const weigh = (text) => {
    lora.weight = Math.min(WEIGHT.maximum, Math.max(WEIGHT.minimum, Number(text) || 0));
    number.value = slider.value = lora.weight;
    changed();
  };
  number.addEventListener("change", () => weigh(number.value));
  slider.addEventListener("input", () => weigh(slider.value));
  return el(
    "li",
    {},
    el("label", { htmlFor: id, dir: "auto" }, lora.name),
    slider,
    number,
    el("button", { type: "button", class: "plain", "aria-label": said.remove(lora.name), onclick: drop }, "×"),
  );
}

/** A list that acts on what is chosen and then stands at its label again. */
function picker(label, pick) {
  const choice = el("select", { "aria-label": label, hidden: true }, el("option", { value: "" }, label));
  choice.addEventListener("change", () => {
    const { value } = choice;
    choice.value = "";
    if (value) pick(value);
  });
  return choice;
}

function options(choice, weights, label) {
  fill(choice, choice.firstChild, weights.map((one) => el("option", { value: one.name }, label(one))));
  choice.hidden = weights.length === 0;
}
