/** The corner that says whether the farm answers and with which key. */

import { get, key, onReachable, probe } from "./api.js";
import { announce, el, fill, freshId } from "./dom.js";
import { words } from "./words.js";

const RETRY_MS = 2000;
const said = words.connection;

class Connection extends HTMLElement {
  #asking = false;

  connectedCallback() {
    this.setAttribute("role", "group");
    this.setAttribute("aria-label", said.key);
    addEventListener("farm:key-needed", () => this.#ask());
    onReachable((now) => this.#reachable(now));
    this.#idle();
  }

  #reachable(now) {
    document.body.classList.toggle("offline", !now);
    if (now) {
      if (this.wasLost) announce(said.back);
      this.wasLost = false;
      if (!this.#asking) this.#idle();
      return;
    }
    this.wasLost = true;
    fill(this, el("span", { class: "warning", role: "status" }, said.lost));
    const again = async () => (await probe()) || setTimeout(again, RETRY_MS);
    setTimeout(again, RETRY_MS);
    // The browser knows at once when its network is back; that the farm answers is seen by asking.
    addEventListener("online", probe, { once: true });
  }

  #idle() {
    this.#asking = false;
    const forget = () => {
      key.set("");
      dispatchEvent(new CustomEvent("farm:key-changed"));
      this.#idle();
    };
    fill(this, key.get() ? el("button", { type: "button", class: "plain", onclick: forget }, said.forget) : null);
  }

  #ask() {
    if (this.#asking) return;
    this.#asking = true;
    const id = freshId("key");
    const input = el("input", { id, type: "password", autocomplete: "off", required: true, size: 24 });
    const state = el("span", { class: "hint", role: "status" }, said.keyHelp);
    const use = async (event) => {
      event.preventDefault();
      key.set(input.value.trim());
      state.textContent = said.checking;
      try {
        await get("/v1/keys/me");
      } catch (error) {
        state.textContent = `${said.refused} ${error.message}`;
        key.set("");
        input.select();
        return;
      }
      this.#idle();
      dispatchEvent(new CustomEvent("farm:key-changed"));
    };
    const label = el("label", { htmlFor: id }, said.keyNeeded);
    const button = el("button", { type: "submit" }, said.use);
    fill(this, el("form", { class: "key", onsubmit: use }, label, input, button, state));
    input.focus();
  }
}

customElements.define("farm-connection", Connection);
