/** Buttons that set several fields at once: ratios of the size, and seeds to draw or to keep. */

import { el } from "./dom.js";
import { RATIOS, sides } from "./fields.js";
import { words } from "./words.js";

const said = words.create;

/** Sizes by their ratio, and the sides swapped. */
export function ratioRow({ width, height }, changed) {
  const set = (ratio) => {
    const [across, down] = sides(ratio, width.read(), height.read());
    width.write(across);
    height.write(down);
    changed();
  };
  const swap = () => set([height.read(), width.read()]);
  return el(
    "div",
    { class: "row", role: "group", "aria-label": said.ratios },
    RATIOS.map((ratio) => plain(ratio.join(":"), () => set(ratio))),
    plain(said.swap, swap),
  );
}

/** A random seed, or that of the last picture: `last` gives it, undefined while there is none. */
export function seedRow({ seed }, last, changed) {
  const write = (value) => {
    if (value === undefined) return;
    seed.write(value);
    changed();
  };
  return el("div", { class: "row" }, plain(said.dice, () => write(null)), plain(said.lock, () => write(last())));
}

function plain(label, act) {
  return el("button", { type: "button", class: "plain", onclick: act }, label);
}
