/** X/Y sweeps: every combination of the values of one or two settings, as one job each. */

import { announce, el, fill, freshId } from "./dom.js";
import { FIELDS, submission, TEXTS, tidied } from "./fields.js";
import { limits } from "./limits.js";
import { words } from "./words.js";

const MOST = limits.BatchSubmission.jobs.maxItems;
// Every setting but how urgent the jobs are.
const SWEPT = [...TEXTS, ...Object.keys(FIELDS).filter((name) => name !== "priority")];
const LABELS = { prompt: words.create.prompt, negative_prompt: words.create.negative };
const said = words.create;

/** Every form that the two axes make of `values`, row by row. An axis is { name, values }. Pure. */
export function combinations(values, across, down) {
  const along = (axis) => (axis.name ? axis.values : [undefined]);
  const put = (form, axis, value) => (axis.name ? { ...form, [axis.name]: value } : form);
  return along(down).flatMap((low) => along(across).map((high) => put(put(values, down, low), across, high)));
}

/** An axis's values as typed: numbers tidied to their field, "20-30 (5)" is 20, 25, 30; bars part prompts. Pure. */
export function axisValues(name, text) {
  if (TEXTS.includes(name)) return text.split("|").map((part) => part.trim()).filter(Boolean);
  if (FIELDS[name]?.kind === "flag") return [false, true];
  const parts = text.split(",").map((part) => part.trim()).filter(Boolean);
  return parts.flatMap((part) => {
    if (FIELDS[name]?.kind !== "number") return [part];
    const range = /^(-?[\d.]+)\s*-\s*([\d.]+)\s*(?:\(([\d.]+)\))?$/.exec(part);
    if (!range) return [tidied(name, part)];
    const [low, high, step] = [Number(range[1]), Number(range[2]), Number(range[3] ?? 1)];
    const count = step > 0 ? Math.min(MOST, Math.floor((high - low) / step + 1e-9) + 1) : 0;
    return Array.from({ length: Math.max(0, count) }, (_, index) => tidied(name, low + index * step));
  });
}

/** The panel. `read` gives the form's values, `pictures` what they start from; `run` posts a body to /v1/batches. */
export function sweepPanel({ read, pictures, run }) {
  const button = el("button", { type: "button" });
  const axes = { across: { name: "", values: [] }, down: { name: "", values: [] } };
  const tell = () => {
    const count = combinations({}, axes.across, axes.down).length;
    button.textContent = said.sweepRun(count);
    button.disabled = !axes.across.name && !axes.down.name;
  };
  const axis = (which, label) => {
    const id = freshId(which);
    const values = el("input", { "aria-label": `${label}: ${said.sweepValues}`, placeholder: "20, 30, 40-60 (10)" });
    const option = (name) => el("option", { value: name }, LABELS[name] ?? words.fields[name][0]);
    const choice = el("select", { id }, el("option", { value: "" }, said.sweepNone), SWEPT.map(option));
    const read = () => {
      axes[which] = { name: choice.value, values: choice.value ? axisValues(choice.value, values.value) : [] };
      tell();
    };
    choice.addEventListener("change", read);
    values.addEventListener("input", read);
    return el("div", { class: "row" }, el("label", { htmlFor: id }, label), choice, values);
  };
  button.addEventListener("click", async () => {
    const forms = combinations(read(), axes.across, axes.down);
    if (forms.length > MOST) {
      announce(said.sweepTooMany(forms.length, MOST), { error: true });
      return;
    }
    // One seed for all, or the settings would not be what differs.
    const seed = read().seed ?? Math.floor(Math.random() * 2 ** 32);
    const start = await pictures();
    run(batch(forms.map((form) => submission({ ...form, seed: form.seed ?? seed }, start))));
  });
  tell();
  const rows = [axis("across", said.sweepAcross), axis("down", said.sweepDown)];
  return el("div", {}, el("small", {}, said.sweepHelp), rows, button);
}

/** The body of POST /v1/batches for many of POST /v1/jobs: what they share once, what differs side by side. Pure. */
export function batch(bodies) {
  const names = [...new Set(bodies.flatMap((body) => Object.keys(body)))];
  const varies = (name) => new Set(bodies.map((body) => JSON.stringify(body[name]))).size > 1;
  // One job varies in nothing, and a batch must in something.
  const swept = names.some(varies) ? names.filter(varies) : ["seed"];
  const template = Object.fromEntries(Object.entries(bodies[0]).filter(([name]) => !swept.includes(name)));
  return { template, zip: Object.fromEntries(swept.map((name) => [name, bodies.map((body) => body[name] ?? null)])) };
}
