/** A picture behind the API key: fetched when it comes near the screen, let go when far: thousands cost no more. */

import { blob } from "./api.js";
import { el, fill } from "./dom.js";

// What is only scrolled past is not asked for: thousands of requests would stand before those that are waited for.
const RESTED_MS = 120;

const near = new IntersectionObserver(
  (entries) => entries.forEach(({ isIntersecting, target }) => (isIntersecting ? target.load() : target.unload())),
  { rootMargin: "800px", scrollMargin: "800px" },
);

export class Picture extends HTMLElement {
  #path;
  #alt;
  #url = null;
  #rest = null;
  #fetching = null;

  constructor(path, alt, { width, height, thumbnail = false } = {}) {
    super();
    this.#path = thumbnail ? `${path}/thumbnail` : `${path}?inline=true`;
    this.#alt = alt;
    if (width) this.style.aspectRatio = `${width} / ${height}`;
  }

  connectedCallback() {
    near.observe(this);
  }

  disconnectedCallback() {
    near.unobserve(this);
    this.unload();
  }

  /** Come near: fetched and shown unless it is soon gone again. */
  load() {
    this.#rest ??= setTimeout(() => this.#fetch(), RESTED_MS);
  }

  /** Let its pixels go; its place keeps its shape, and the browser's cache the file. */
  unload() {
    clearTimeout(this.#rest);
    this.#fetching?.abort();
    this.#rest = this.#fetching = null;
    if (!this.#url) return;
    URL.revokeObjectURL(this.#url);
    this.#url = null;
    fill(this);
  }

  async #fetch() {
    const fetching = new AbortController();
    this.#fetching = fetching;
    const found = await blob(this.#path, { signal: fetching.signal }).catch(() => null);
    if (!found || fetching.signal.aborted) return;
    this.#url = URL.createObjectURL(found);
    fill(this, el("img", { src: this.#url, alt: this.#alt, decoding: "async" }));
  }
}

customElements.define("farm-picture", Picture);
