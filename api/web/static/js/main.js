/** The console: which page is shown, and what all pages share. */

import "./connection.js";
import { announce, el, fill } from "./dom.js";
import { words } from "./words.js";

const PAGES = {
  create: () => import("./create.js"),
  gallery: () => import("./gallery.js"),
  farm: () => import("./farm.js"),
};

const nav = document.getElementById("pages");
const main = document.getElementById("main");
let shown = null;

/** The page and the query of the address: #create?steps=30. */
function address() {
  const [name, query = ""] = location.hash.slice(1).split(/\?(.*)/s);
  return { name: PAGES[name] ? name : "create", query };
}

function mark(name) {
  for (const link of nav.children) {
    if (link.dataset.page === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

async function show() {
  const { name, query } = address();
  mark(name);
  const { page } = await PAGES[name]().catch(() => ({}));
  if (address().name !== name) return;
  if (!page) {
    stay();
    return;
  }
  if (shown?.name === name) {
    shown.element.revisit?.(query);
    return;
  }
  shown = { name, element: page(query) };
  document.title = words.title(words.pages[name]);
  fill(main, shown.element);
}

/** The farm is away, and with it the page's script: what is shown stays. */
function stay() {
  announce(words.errors.unreachable, { error: true });
  if (!shown) return;
  history.replaceState(null, "", `#${shown.name}`);
  mark(shown.name);
}

fill(
  nav,
  Object.keys(PAGES).map((name) => el("a", { href: `#${name}`, dataset: { page: name } }, words.pages[name])),
  el("a", { href: "docs" }, words.pages.docs),
);
addEventListener("hashchange", show);
addEventListener("farm:key-changed", () => {
  shown = null;
  show();
});
show();
