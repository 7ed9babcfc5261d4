/** A small column chart in SVG. */

const NS = "http://www.w3.org/2000/svg";

function svg(tag, attributes, ...children) {
  const made = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Columns for `values`, with a text that says them to those who do not see it. */
export function columns(values, { title, width = 600, height = 120 }) {
  const top = Math.max(1, ...values);
  const step = width / values.length;
  const bars = values.map((value, index) => {
    const tall = ((height - 16) * value) / top;
    return svg("rect", { x: index * step, y: height - tall, width: Math.max(1, step - 1), height: tall, class: "column" });
  });
  const most = svg("text", { x: 0, y: 12, class: "axis" });
  most.textContent = String(top);
  const name = svg("title", {});
  name.textContent = `${title}: ${values.join(", ")}`;
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", class: "chart", "aria-label": title }, name, ...bars, most);
}
