/** Everything that was made, newest first, as far back as one scrolls. */

import { blob, get, remove } from "./api.js";
import { announce, download, el, fill, freshId } from "./dom.js";
import { limits } from "./limits.js";
import { Picture } from "./picture.js";
import { reuse, send } from "./sent.js";
import { openViewer } from "./viewer.js";
import { words } from "./words.js";
import { zip } from "./zip.js";

const PAGE = 100;
const AHEAD = "600px";
const RESTED_MS = 300;
// The farm knows no job that has not arrived.
const STATES = Object.keys(words.job.states).filter((state) => state !== "sending" && state !== "waiting");
const said = words.gallery;

class GalleryPage extends HTMLElement {
  #cursor = null;
  #isAll = false;
  #shown = [];
  #selected = new Map();
  #asked = 0;
  #loading = false;

  connectedCallback() {
    if (!this.firstChild) this.#build();
    this.#again();
  }

  disconnectedCallback() {
    this.end?.disconnect();
  }

  #build() {
    this.chosen = el("div", { class: "row chosen", hidden: true, role: "status" });
    this.tiles = el("div", { class: "tiles" });
    this.foot = el("p", { class: "hint" });
    fill(this, this.#filters(), this.chosen, this.tiles, this.foot);
    this.end = new IntersectionObserver(
      // Several may come at once; the last tells how it is now.
      (entries) => entries.at(-1).isIntersecting && this.#more(),
      { rootMargin: AHEAD },
    );
    this.end.observe(this.foot);
    const offer = ({ checkpoints }) => this.checkpoint.append(...checkpoints.map(({ name }) => option(name, name)));
    get("/v1/checkpoints").then(offer, () => null);
  }

  #filters() {
    let rest;
    const soon = () => {
      clearTimeout(rest);
      rest = setTimeout(() => this.#again(), RESTED_MS);
    };
    const now = () => this.#again();
    this.search = el("input", { type: "search", ...limits.search, oninput: soon });
    this.checkpoint = el("select", { onchange: now }, option("", said.any));
    this.state = el("select", { onchange: now }, STATES.map((state) => option(state, words.job.states[state])));
    return el(
      "form",
      { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() },
      field(said.search, this.search),
      field(said.checkpoint, this.checkpoint),
      field(said.state, this.state),
    );
  }

  async #again() {
    this.#asked += 1;
    this.#cursor = null;
    this.#isAll = false;
    this.#shown = [];
    this.#selected.clear();
    this.#tellChosen();
    fill(this.tiles);
    this.#loading = false;
    await this.#more();
  }

  async #more() {
    if (this.#loading || this.#isAll) return;
    this.#loading = true;
    const asked = this.#asked;
    this.foot.textContent = said.loading;
    const query = new URLSearchParams({ limit: PAGE, state: this.state.value });
    if (this.checkpoint.value) query.set("checkpoint", this.checkpoint.value);
    if (this.search.value.trim()) query.set("prompt", this.search.value.trim());
    if (this.#cursor) query.set("cursor", this.#cursor);
    try {
      const page = await get(`/v1/jobs?${query}`);
      if (asked !== this.#asked) return;
      this.#cursor = page.next_cursor;
      this.#isAll = this.#cursor === null;
      for (const job of page.jobs) this.#add(job);
      this.foot.textContent = this.#cursor ? said.loading : this.tiles.firstChild ? said.end : said.nothing;
    } catch (error) {
      announce(error.message, { error: true });
      this.foot.textContent = "";
    } finally {
      if (asked === this.#asked) this.#loading = false;
    }
    // What came may not fill the screen, or somebody is at the end again: the observer tells first what is.
    if (asked === this.#asked && this.#cursor) {
      this.end.unobserve(this.foot);
      this.end.observe(this.foot);
    }
  }

  #add(job) {
    if (job.images.length) this.tiles.append(...job.images.map((image) => this.#tile({ job, image })));
    else this.tiles.append(textTile(job));
  }

  #tile(entry) {
    const { job, image } = entry;
    this.#shown.push(entry);
    const name = words.job.picture(job.params.prompt.slice(0, 80));
    const picture = new Picture(image.url, name, { width: image.width, height: image.height, thumbnail: true });
    const open = { type: "button", class: "picture", title: job.params.prompt, onclick: () => this.#open(entry) };
    const choose = (event) => this.#choose(entry, event.target.checked);
    const tile = el(
      "div",
      { class: "tile", dataset: { job: job.id } },
      el("button", open, picture),
      el("input", { type: "checkbox", "aria-label": `${said.select}: ${name}`, onchange: choose }),
    );
    // Its own shape, not its content's: coming into view changes the place of nothing.
    tile.style.aspectRatio = `${image.width} / ${image.height}`;
    return tile;
  }

  #open(entry) {
    openViewer(entry, {
      list: () => this.#shown,
      reuse,
      send,
      removed: (id) => this.#drop(id),
    });
  }

  #choose(entry, isChosen) {
    const id = `${entry.job.id}-${entry.image.index}`;
    if (isChosen) this.#selected.set(id, entry);
    else this.#selected.delete(id);
    this.#tellChosen();
  }

  #tellChosen() {
    this.chosen.hidden = this.#selected.size === 0;
    fill(
      this.chosen,
      el("span", {}, said.selected(this.#selected.size)),
      el("button", { type: "button", onclick: () => this.#zip() }, said.zip),
      el("button", { type: "button", class: "plain", onclick: () => this.#removeChosen() }, said.remove),
    );
  }

  async #zip() {
    const files = [];
    try {
      for (const [id, { image }] of this.#selected) {
        this.chosen.firstChild.textContent = said.zipping(files.length, this.#selected.size);
        const picture = await blob(`${image.url}?inline=true`);
        files.push({ name: `${id}.png`, bytes: new Uint8Array(await picture.arrayBuffer()) });
      }
      download(zip(files), "pictures.zip");
    } catch (error) {
      announce(error.message, { error: true });
    }
    this.#tellChosen();
  }

  async #removeChosen() {
    const ids = [...new Set([...this.#selected.values()].map(({ job }) => job.id))];
    if (!confirm(said.removeSure(ids.length))) return;
    for (const id of ids) {
      try {
        await remove(`/v1/jobs/${id}`);
      } catch (error) {
        // Deleted elsewhere is deleted.
        if (error.status !== 404 && error.status !== 410) {
          announce(error.message, { error: true });
          continue;
        }
      }
      this.#drop(id);
    }
  }

  #drop(id) {
    this.#shown = this.#shown.filter(({ job }) => job.id !== id);
    for (const [name, { job }] of this.#selected) if (job.id === id) this.#selected.delete(name);
    for (const tile of this.tiles.querySelectorAll(`[data-job="${id}"]`)) tile.remove();
    this.#tellChosen();
  }
}

/** What stands for a job without pictures. */
function textTile(job) {
  return el(
    "div",
    { class: "tile text", dataset: { job: job.id } },
    el("p", { dir: "auto" }, job.params.prompt),
    el("small", {}, job.error?.message ?? words.job.states[job.state]),
  );
}

function field(label, input) {
  input.id = freshId("filter");
  return el("div", { class: "field" }, el("label", { htmlFor: input.id }, label), input);
}

function option(value, label) {
  return el("option", { value }, label);
}

customElements.define("gallery-page", GalleryPage);

export function page() {
  return new GalleryPage();
}
