/** What a key may use: the fields for it, and the dialog that changes it. */

import { patch } from "./api.js";
import { el, freshId } from "./dom.js";
import { number } from "./fields.js";
import { limits } from "./limits.js";
import { words } from "./words.js";

const said = words.farm;
// The limits that are shown, and the step of each.
const STEPS = { weight: 0.001, max_priority: 1, max_running: 1, max_queued: 1, requests_per_minute: 1 };
// A key always has these, and the farm takes no null for them.
const NEEDED = new Set(["weight", "max_priority"]);

/** A number field for each limit, by its name. */
export function limitInputs() {
  return Object.fromEntries(Object.entries(STEPS).map(([name, step]) => [name, limitInput(name, step)]));
}

function limitInput(name, step) {
  const { low: min, high: max, start } = number(limits.NewKey[name], step);
  return numberInput({ min, max, step: step < 1 ? "any" : step, placeholder: start ?? "∞" });
}

export function numberInput(range) {
  return el("input", { type: "number", ...range });
}

/** A field with its label above. */
export function limitField([name, input]) {
  input.id = freshId(name);
  return el("div", { class: "field" }, el("label", { htmlFor: input.id }, said.keyLimits[name]), input);
}

/** Let a key's limits be changed; settles once that is done or given up. */
export function changeLimits(key) {
  const inputs = limitInputs();
  for (const [name, input] of Object.entries(inputs)) {
    input.value = key[name] ?? "";
    input.required = NEEDED.has(name);
  }
  const refused = el("p", { class: "warning", role: "alert" });
  const dialog = el("dialog", { class: "limits", "aria-label": said.limitsOf(key.name) });
  const save = async (event) => {
    event.preventDefault();
    try {
      await patch(`/v1/keys/${key.id}`, changed(key, inputs));
      dialog.close();
    } catch (error) {
      refused.textContent = error.message;
    }
  };
  dialog.append(
    el(
      "form",
      { onsubmit: save },
      el("h2", { dir: "auto" }, said.limitsOf(key.name)),
      el("div", { class: "grid" }, Object.entries(inputs).map(limitField)),
      el("small", {}, said.limitsHelp),
      refused,
      el(
        "div",
        { class: "actions" },
        el("button", { type: "submit" }, said.save),
        el("button", { type: "button", onclick: () => dialog.close() }, said.keep),
      ),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((done) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      done();
    });
  });
}

/** The body of PATCH /v1/keys: what was left alone stays what it is by then. */
function changed(key, inputs) {
  const read = ([name, input]) => [name, input.value === "" ? null : Number(input.value)];
  return Object.fromEntries(Object.entries(inputs).map(read).filter(([name, value]) => value !== key[name]));
}
