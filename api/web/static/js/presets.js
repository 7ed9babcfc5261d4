/** Sets of settings by name: the three that people are taught, and the user's own, kept in this browser. */

import { el, fill } from "./dom.js";
import { PRESETS } from "./fields.js";
import { words } from "./words.js";

const STORE = "farm.presets";
const KEPT = ["prompt", "negative_prompt", "seed"];
const said = words.create;

function own() {
  try {
    return JSON.parse(localStorage.getItem(STORE) ?? "{}");
  } catch {
    return {};
  }
}

/** Buttons that set the form; `read` and `write` reach its values. A preset leaves prompts and seed alone. */
export function presetBar({ read, write }) {
  const bar = el("div", { class: "presets", role: "group", "aria-label": said.presets });
  const use = (preset) => write(preset);
  const save = (event) => {
    event.preventDefault();
    const name = event.target.elements.name.value.trim();
    if (!name) return;
    const values = Object.fromEntries(Object.entries(read()).filter(([field]) => !KEPT.includes(field)));
    localStorage.setItem(STORE, JSON.stringify({ ...own(), [name]: values }));
    show();
  };
  const drop = (name) => {
    const { [name]: _, ...rest } = own();
    localStorage.setItem(STORE, JSON.stringify(rest));
    show();
  };
  const button = (label, preset) => el("button", { type: "button", onclick: () => use(preset) }, label);
  const mine = (name, preset) => {
    const away = { type: "button", class: "plain", "aria-label": said.deletePreset(name), onclick: () => drop(name) };
    return el("span", { class: "chip" }, button(name, preset), el("button", away, "×"));
  };
  const show = () =>
    fill(
      bar,
      Object.entries(PRESETS).map(([name, preset]) => button(words.presets[name], preset)),
      Object.entries(own()).map(([name, preset]) => mine(name, preset)),
      naming(),
    );
  const naming = () => {
    const ask = el("button", { type: "button", class: "plain" }, said.savePreset);
    ask.addEventListener("click", () => {
      // A form may not lie in the form it saves; Enter is caught by hand.
      const input = el("input", { maxLength: 40, "aria-label": said.presetName, placeholder: said.presetName });
      const keep = () => save({ preventDefault() {}, target: { elements: { name: input } } });
      input.addEventListener("keydown", (event) => {
        if (event.key === "Enter") {
          event.preventDefault();
          keep();
        }
        if (event.key === "Escape") show();
      });
      ask.replaceWith(input);
      input.focus();
    });
    return ask;
  };
  show();
  return bar;
}
