/** X/Y sweeps: every combination of the values of one or two settings, as one job each. */

import { announce, el, fill, freshId } from "./dom.js";
import { FIELDS, pathOf, submission, TEXTS, tidied } from "./fields.js";
import { limits } from "./limits.js";
import { words } from "./words.js";

const MOST = limits.BatchSubmission.jobs.maxItems;
// Every setting but how urgent the jobs are.
const SWEPT = [...TEXTS, ...Object.keys(FIELDS).filter((name) => name !== "priority")];
const LABELS = { prompt: words.create.prompt, negative_prompt: words.create.negative };
const said = words.create;

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

/** The panel. `read` gives the form's values; `run` is handed them and the grid, by the farm's names. */
export function sweepPanel({ read, run }) {
  const button = el("button", { type: "button" });
  const axes = { down: { name: "", values: [] }, across: { name: "", values: [] } };
  const chosen = () => Object.values(axes).filter(({ name }) => name);
  const count = () => chosen().reduce((product, { values }) => product * values.length, 1);
  const tell = () => {
    button.textContent = said.sweepRun(count());
    button.disabled = chosen().length === 0 || count() === 0;
  };
  const axis = (which, label) => {
    const id = freshId(which);
    const values = el("input", { "aria-label": `${label}: ${said.sweepValues}`, placeholder: "20, 30, 40-60 (10)" });
    const option = (name) => el("option", { value: name }, LABELS[name] ?? words.fields[name][0]);
    const choice = el("select", { id }, el("option", { value: "" }, said.sweepNone), SWEPT.map(option));
    const typed = () => {
      axes[which] = { name: choice.value, values: choice.value ? axisValues(choice.value, values.value) : [] };
      tell();
    };
    choice.addEventListener("change", typed);
    values.addEventListener("input", typed);
    return el("div", { class: "row" }, el("label", { htmlFor: id }, label), choice, values);
  };
  button.addEventListener("click", () => {
    const names = chosen().map(({ name }) => name);
    if (count() > MOST) announce(said.sweepTooMany(count(), MOST), { error: true });
    else if (names.length > new Set(names).size) announce(said.sweepSame, { error: true });
    else run({ values: read(), grid: grid(chosen()) });
  });
  tell();
  const rows = [axis("across", said.sweepAcross), axis("down", said.sweepDown)];
  return el("div", {}, el("small", {}, said.sweepHelp), rows, button);
}

/** Axes as POST /v1/batches takes them: the last changes fastest. Pure. */
export function grid(axes) {
  // As in a job of the form: no steps of its own is none said.
  const said = (name, value) => (name === "hires_steps" && value === 0 ? null : value);
  return Object.fromEntries(axes.map(({ name, values }) => [pathOf(name), values.map((value) => said(name, value))]));
}

/** What all cells of a grid share. Only what is swept may differ: seeds are drawn once. */
export function template(values, grid, pictures) {
  const drawn = () => Math.floor(Math.random() * 2 ** 32);
  const sweeps = (outer) => Object.keys(grid).some((path) => path.startsWith(`${outer}.`));
  const form = { ...values, hires: values.hires || sweeps("hires") };
  const body = { ...submission(form, pictures), seed: values.seed ?? drawn() };
  if (sweeps("variation")) body.variation = { strength: values.variation_strength };
  if (body.variation) body.variation.seed = values.variation_seed ?? drawn();
  return body;
}
