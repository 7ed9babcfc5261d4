/** Elements without markup strings: whatever a user wrote becomes text, never HTML. */

import { words } from "./words.js";

/** Make an element. Props starting with "on" are listeners, known properties are set, the rest become attributes. */
export function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "class") made.className = value;
    else if (name === "dataset") Object.assign(made.dataset, value);
    else if (name in made && !name.startsWith("aria")) made[name] = value;
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...present(children));
  return made;
}

/** A button that acts; why it could not is announced. */
export function acting(label, act, props = {}) {
  const press = () => act().catch((error) => announce(error.message, { error: true }));
  return el("button", { type: "button", class: "plain", onclick: press, ...props }, label);
}

/** Replace what an element holds. */
export function fill(parent, ...children) {
  parent.replaceChildren(...present(children));
  return parent;
}

function present(children) {
  return children.flat().filter((child) => child !== null && child !== undefined && child !== false);
}

let serial = 0;

/** An id that no other element has. */
export function freshId(stem) {
  serial += 1;
  return `${stem}-${serial}`;
}

/** Save bytes under a name, as the browser's own download. */
export function download(blob, name) {
  const url = URL.createObjectURL(blob);
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Say something to everyone, screen readers included; it goes by itself unless it is an error. */
export function announce(text, { error = false } = {}) {
  const notes = document.getElementById("notes");
  const note = el(
    "div",
    { class: error ? "note error" : "note" },
    el("span", {}, text),
    el("button", { type: "button", class: "plain", "aria-label": words.dismiss, onclick: () => note.remove() }, "×"),
  );
  notes.append(note);
  while (notes.children.length > 4) notes.firstChild.remove();
  setTimeout(() => note.remove(), error ? 15_000 : 4_000);
}
