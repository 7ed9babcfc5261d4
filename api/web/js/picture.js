/** A picture behind the API key: fetched when it comes near the screen, let go when it leaves the page. */

import { blob } from "./api.js";
import { el, fill } from "./dom.js";

const near = new IntersectionObserver(
  (entries) => entries.forEach((entry) => entry.isIntersecting && entry.target.load()),
  { rootMargin: "400px" },
);

export class Picture extends HTMLElement {
  #path;
  #alt;
  #url = null;

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
    if (this.#url) URL.revokeObjectURL(this.#url);
    this.#url = null;
    fill(this);
  }

  /** Fetch and show it, once. */
  async load() {
    near.unobserve(this);
    if (this.#url) return;
    const found = await blob(this.#path).catch(() => null);
    if (!found || !this.isConnected || this.#url) return;
    this.#url = URL.createObjectURL(found);
    fill(this, el("img", { src: this.#url, alt: this.#alt, decoding: "async" }));
  }
}

customElements.define("farm-picture", Picture);
