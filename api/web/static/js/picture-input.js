/** A picture to start from, and the mask painted over it. Nothing leaves the browser before a job is submitted. */

import { announce, el, fill, freshId } from "./dom.js";
import { limits } from "./limits.js";
import { words } from "./words.js";

// Half a body: in base64 a picture takes a third more, and its mask needs room beside it.
const MAX_MB = limits.body.bytes / 2 / 2 ** 20;
const said = words.create;

export class PictureInput extends HTMLElement {
  #bitmap = null;
  #file = null;
  #paint = null;
  #erasing = false;
  #size = 40;
  #last = null;

  connectedCallback() {
    if (this.firstChild) return;
    this.addEventListener("dragover", (event) => event.preventDefault());
    this.addEventListener("drop", (event) => {
      event.preventDefault();
      event.stopPropagation();
      this.offer(event.dataTransfer.files[0]);
    });
    this.#empty();
  }

  get isFilled() {
    return this.#bitmap !== null;
  }

  /** Take a file as the picture to start from; say why not. Returns whether it was taken. */
  async offer(file) {
    if (!file) return false;
    if (file.size > MAX_MB * 2 ** 20) {
      announce(said.tooBig(Number(MAX_MB.toPrecision(2))), { error: true });
      return false;
    }
    const bitmap = await createImageBitmap(file).catch(() => null);
    if (!bitmap) {
      announce(said.notAPicture, { error: true });
      return false;
    }
    this.#bitmap = bitmap;
    this.#file = file;
    this.#show();
    this.#tell();
    return true;
  }

  clear() {
    this.#bitmap = null;
    this.#file = null;
    this.#paint = null;
    this.#empty();
    this.#tell();
  }

  /** The picture and mask in base64 as the API takes them: {} without a picture, no mask where nothing was painted. */
  async pictures() {
    if (!this.#file) return {};
    const init = await base64(this.#file);
    if (!this.#isPainted()) return { init };
    return { init, mask: await base64(await this.#mask()) };
  }

  #tell() {
    const size = this.#bitmap && { width: this.#bitmap.width, height: this.#bitmap.height };
    this.dispatchEvent(new CustomEvent("picture", { bubbles: true, detail: size }));
  }

  #empty() {
    const id = freshId("file");
    const choose = (event) => this.offer(event.target.files[0]);
    fill(
      this,
      el("label", { class: "drop", htmlFor: id }, said.dropHint),
      el("input", { id, type: "file", accept: "image/*", "aria-label": said.chooseFile, onchange: choose }),
    );
  }

  #show() {
    const { width, height } = this.#bitmap;
    const under = el("canvas", { width, height });
    under.getContext("2d").drawImage(this.#bitmap, 0, 0);
    this.#paint = el("canvas", { width, height, class: "paint", tabIndex: 0, role: "img", "aria-label": said.mask });
    for (const type of ["pointerdown", "pointermove", "pointerup", "pointercancel"]) {
      this.#paint.addEventListener(type, (event) => this.#stroke(event));
    }
    this.#size = Math.max(8, Math.round(Math.max(width, height) / 12));
    fill(
      this,
      el("div", { class: "canvas" }, under, this.#paint),
      this.#tools(Math.max(width, height)),
      el("small", {}, said.maskHelp),
    );
  }

  #tools(longest) {
    const id = freshId("brush");
    const erase = el("button", { type: "button", class: "plain", "aria-pressed": "false" }, said.erase);
    erase.addEventListener("click", () => {
      this.#erasing = !this.#erasing;
      erase.setAttribute("aria-pressed", String(this.#erasing));
    });
    const resized = (event) => (this.#size = Number(event.target.value));
    return el(
      "div",
      { class: "tools" },
      el("label", { htmlFor: id }, said.brush),
      el("input", { id, type: "range", min: 4, max: Math.round(longest / 2), value: this.#size, oninput: resized }),
      erase,
      el("button", { type: "button", class: "plain", onclick: () => this.#invert() }, said.invertMask),
      el("button", { type: "button", class: "plain", onclick: () => this.#clearMask() }, said.clearMask),
      el("button", { type: "button", class: "plain", onclick: () => this.clear() }, said.removeImage),
    );
  }

  #stroke(event) {
    if (event.type === "pointerdown") this.#paint.setPointerCapture(event.pointerId);
    const isDown = event.type === "pointerdown" || (event.type === "pointermove" && event.buttons);
    if (!isDown) {
      this.#last = null;
      return;
    }
    const box = this.#paint.getBoundingClientRect();
    const at = [
      ((event.clientX - box.left) * this.#paint.width) / box.width,
      ((event.clientY - box.top) * this.#paint.height) / box.height,
    ];
    const pen = this.#paint.getContext("2d");
    pen.globalCompositeOperation = this.#erasing ? "destination-out" : "source-over";
    pen.strokeStyle = "#fff";
    pen.lineWidth = this.#size;
    pen.lineCap = pen.lineJoin = "round";
    pen.beginPath();
    pen.moveTo(...(this.#last ?? at));
    pen.lineTo(...at);
    pen.stroke();
    this.#last = at;
  }

  #clearMask() {
    this.#paint.getContext("2d").clearRect(0, 0, this.#paint.width, this.#paint.height);
  }

  #invert() {
    const pen = this.#paint.getContext("2d");
    pen.globalCompositeOperation = "xor";
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, this.#paint.width, this.#paint.height);
  }

  #isPainted() {
    const { width, height } = this.#paint;
    const pixels = this.#paint.getContext("2d").getImageData(0, 0, width, height).data;
    for (let at = 3; at < pixels.length; at += 4) if (pixels[at]) return true;
    return false;
  }

  #mask() {
    const { width, height } = this.#paint;
    const mask = el("canvas", { width, height });
    const pen = mask.getContext("2d");
    pen.fillRect(0, 0, width, height);
    pen.drawImage(this.#paint, 0, 0);
    return new Promise((done) => mask.toBlob(done, "image/png"));
  }
}

async function base64(blob) {
  const url = await new Promise((done) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.readAsDataURL(blob);
  });
  return url.slice(url.indexOf(",") + 1);
}

customElements.define("picture-input", PictureInput);
