/** Small charts in SVG. Texts stand beside it in HTML, where no scaling reaches them. */

import { el } from "./dom.js";

const NS = "http://www.w3.org/2000/svg";
const WIDTH = 600;
const HEIGHT = 90;

function svg(tag, attributes, ...children) {
  const made = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Columns for `values`, which may be null; `says` gives the text for who does not see them, and for the pointer. */
export function columns(values, { title, from, to, kind = "", format = String, says }) {
  const top = Math.max(...values.map((value) => value ?? 0));
  const step = WIDTH / values.length;
  const column = (value, index) => {
    const tall = top ? (HEIGHT * (value ?? 0)) / top : 0;
    const name = svg("title", {});
    name.textContent = says(value, index);
    // The whole height answers to the pointer, the column alone is seen.
    const place = svg("rect", { x: index * step, y: 0, width: step, height: HEIGHT, class: "place" }, name);
    const extent = { x: index * step, y: HEIGHT - tall, width: Math.max(1, step - 1.5), height: tall };
    const seen = { ...extent, class: `column ${kind}` };
    return [svg("rect", seen), place];
  };
  const drawn = svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": title },
    svg("line", { x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT, class: "ground" }),
    ...values.flatMap(column),
  );
  return el(
    "figure",
    { class: "chart" },
    el("figcaption", {}, el("span", {}, title), top ? el("span", { class: "hint" }, format(top)) : null),
    drawn,
    el("div", { class: "times hint" }, el("span", {}, from), el("span", {}, to)),
  );
}
