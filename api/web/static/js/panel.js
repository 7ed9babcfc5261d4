/** What the panels of the farm's page are made of: tables, figures, times, and buttons that act and redraw. */

import { announce, el } from "./dom.js";
import { words } from "./words.js";

const said = words.farm;
const seconds = words.job.seconds;

/** How long ago a moment was; null for none. */
export const ago = (time) => (time ? said.ago(seconds((Date.now() - Date.parse(time)) / 1000)) : null);

/** A length of time; null for none. */
export const span = (s) => (s === null || s === undefined ? null : seconds(s));

/** A number to be seen from afar. */
export function figure(value, name) {
  return el("span", {}, el("b", {}, String(value)), ` ${name}`);
}

/** What stands where there is nothing. */
export function hint(text) {
  return el("p", { class: "hint" }, text);
}

/** A table that scrolls by itself where it is too wide. A title without text is that of the buttons. */
export function table(titles, rows) {
  const head = (title) => el("th", { scope: "col" }, title || el("span", { class: "unseen" }, said.actions));
  const row = (cells) => el("tr", {}, cells.map((cell) => el("td", {}, cell ?? "–")));
  return el(
    "div",
    { class: "scroll", tabIndex: 0, role: "region", "aria-label": titles[0] },
    el("table", {}, el("thead", {}, el("tr", {}, titles.map(head))), el("tbody", {}, rows.map(row))),
  );
}

/** A button that acts, says what went wrong, and has its panel drawn again. */
export function act(name, label, run, look) {
  const press = async (event) => {
    event.target.closest(".panel-body").dataset.focus = name;
    event.target.disabled = true;
    await run().catch((error) => announce(error.message, { error: true }));
    look();
  };
  return el("button", { type: "button", class: "plain", dataset: { act: name }, onclick: press }, label);
}

/** Redraw and give the focus back to the button that had it. */
export async function keeping(body, draw) {
  await draw();
  const wanted = body.dataset.focus;
  const isLost = document.activeElement === document.body;
  if (wanted && isLost) body.querySelector(`[data-act="${CSS.escape(wanted)}"]`)?.focus();
}
