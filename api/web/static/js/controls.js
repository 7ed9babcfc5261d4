/** Labelled controls for the settings of `fields.js`. Each says in one line what it does. */

import { el, fill, freshId } from "./dom.js";
import { FIELDS, tidied } from "./fields.js";
import { limits } from "./limits.js";
import { emphasized } from "./prompts.js";
import { tokenMeter } from "./token-meter.js";
import { words } from "./words.js";

/** A control for one field: { element, read, write, options }. `changed` is called after the user has changed it. */
export function control(name, changed) {
  const [label, help] = words.fields[name];
  const field = FIELDS[name];
  const id = freshId(name);
  const input = INPUTS[field.kind](name, field, id, changed);
  input.node.setAttribute("aria-describedby", `${id}-help`);
  const element = el(
    "div",
    { class: `field ${field.kind}`, dataset: { field: name } },
    el("label", { htmlFor: id }, label),
    el("div", { class: "inputs" }, input.all ?? input.node),
    el("small", { id: `${id}-help` }, help),
  );
  return { element, ...input };
}

const INPUTS = {
  number(name, field, id, changed) {
    const range = { min: field.low, max: field.high, step: field.step };
    const isOptional = field.start === null;
    const placeholder = isOptional ? words.create.random : "";
    const node = el("input", { id, type: "number", ...range, inputMode: "decimal", placeholder });
    const slider = isOptional ? null : el("input", { type: "range", ...range, tabIndex: -1, "aria-hidden": "true" });
    const write = (value) => {
      node.value = value ?? "";
      if (slider) slider.value = value ?? field.start;
    };
    const settle = (text) => {
      write(tidied(name, text));
      changed(name);
    };
    node.addEventListener("change", () => settle(node.value));
    slider?.addEventListener("input", () => settle(slider.value));
    return { node, all: slider ? [node, slider] : [node], read: () => tidied(name, node.value), write };
  },
  choice(name, field, id, changed) {
    const node = el("select", { id, onchange: () => changed(name) });
    const offer = (options) => {
      const before = node.value;
      fill(node, options.map(({ value, label, disabled = false }) => el("option", { value, disabled }, label)));
      node.value = options.some(({ value }) => value === before) ? before : (options[0]?.value ?? "");
    };
    const spelled = (value) => words.options[name]?.[value] ?? value;
    if (field.options) offer(field.options.map((value) => ({ value, label: spelled(value) })));
    const write = (value) => {
      // A name that is not offered (any more) is shown as it is: the farm refuses it with the names it knows.
      const isOffered = [...node.options].some((option) => option.value === value);
      if (value && !isOffered) node.append(el("option", { value }, value));
      node.value = value ?? "";
      // Where none is offered, one must be chosen: the first.
      if (node.selectedIndex < 0) node.value = node.options[0]?.value ?? "";
    };
    return { node, offer, read: () => node.value, write };
  },
  flag(name, _field, id, changed) {
    const node = el("input", { id, type: "checkbox", onchange: () => changed(name) });
    return { node, read: () => node.checked, write: (value) => (node.checked = Boolean(value)) };
  },
};

/** A text area for a prompt, with a meter of its tokens. `edited` is called at every change, `changed` at its end. */
export function promptBox(name, { changed, edited }) {
  const id = freshId(name);
  const said = words.create;
  const isMain = name === "prompt";
  const meter = tokenMeter();
  const tell = () => {
    meter.guess(node.value);
    edited();
  };
  const weigh = (event) => {
    const direction = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (!direction || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    const next = emphasized({ text: node.value, start: node.selectionStart, end: node.selectionEnd }, direction);
    node.value = next.text;
    node.setSelectionRange(next.start, next.end);
    tell();
    changed(name);
  };
  const node = el("textarea", {
    id,
    rows: isMain ? 4 : 2,
    maxLength: limits.Submission[name].maxLength,
    dir: "auto",
    spellcheck: false,
    "aria-describedby": `${id}-help`,
    onkeydown: weigh,
    oninput: tell,
    onchange: () => changed(name),
  });
  const element = el(
    "div",
    { class: "field prompt" },
    el("div", { class: "line" }, el("label", { htmlFor: id }, isMain ? said.prompt : said.negative), meter.line),
    node,
    meter.marks,
    el("small", { id: `${id}-help` }, isMain ? said.promptHelp : said.negativeHelp),
  );
  const write = (text) => {
    node.value = text ?? "";
    tell();
  };
  meter.guess("");
  return { element, node, meter, read: () => node.value, write };
}
