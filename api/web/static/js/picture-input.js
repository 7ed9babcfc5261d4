/** A picture to start from, and the mask painted over it. Nothing leaves the browser before a job is submitted.

Tells of a picture that came or went (`picture`, with its size) and of each change that a reload must not undo (`kept`).
*/

import { announce, el, fill, freshId } from "./dom.js";
import { limits } from "./limits.js";
import { words } from "./words.js";

// Half a body: in base64 a picture takes a third more, and its mask needs room beside it.
const MAX_BYTES = limits.body.bytes / 2;
const said = words.create;

export class PictureInput extends HTMLElement {
  #bitmap = null;
  #file = null;
  #paint = null;
  // The mask as it came with the picture, until somebody paints; where the farm has both, for what is too big to send.
  #mask = null;
  #named = null;
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
    if (file.size > MAX_BYTES) {
      announce(said.tooBig(Number((MAX_BYTES / 2 ** 20).toPrecision(2))), { error: true });
      return false;
    }
    return this.restore({ file });
  }

  /** Show a picture with its mask: { file, mask, named }, as `kept` gave them or a job names them. Says why not. */
  async restore({ file, mask = null, named = null }) {
    const [bitmap, over] = await Promise.all([decoded(file), mask && decoded(mask)]);
    if (!bitmap) {
      announce(said.notAPicture, { error: true });
      return false;
    }
    this.#bitmap = bitmap;
    this.#file = file;
    this.#named = named;
    this.#show();
    if (over) this.#cover(over);
    this.#mask = over && mask;
    this.#tell();
    return true;
  }

  clear() {
    this.#bitmap = this.#file = this.#paint = this.#mask = this.#named = null;
    this.#empty();
    this.#tell();
  }

  /** The picture and mask as the API takes them: {} without a picture, no mask where nothing was painted. */
  async pictures() {
    if (!this.#file) return {};
    const isTooBig = this.#file.size > MAX_BYTES;
    const init = isTooBig ? this.#named.init_image : await base64(this.#file);
    const mask = await this.#painted();
    return mask ? { init, mask: await base64(mask) } : { init };
  }

  /** The same as files, to be restored; null without a picture. */
  async kept() {
    return this.#file && { file: this.#file, mask: await this.#painted(), named: this.#named };
  }

  /** Paint what is not painted, and nothing else. */
  invert() {
    const pen = this.#paint.getContext("2d");
    pen.globalCompositeOperation = "xor";
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, this.#paint.width, this.#paint.height);
    this.#isRepainted();
  }

  #tell() {
    const size = this.#bitmap && { width: this.#bitmap.width, height: this.#bitmap.height };
    this.dispatchEvent(new CustomEvent("picture", { bubbles: true, detail: size }));
    this.#tellKept();
  }

  #tellKept() {
    this.dispatchEvent(new CustomEvent("kept", { bubbles: true }));
  }

  #isRepainted() {
    this.#mask = null;
    this.#tellKept();
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
      el("button", { type: "button", class: "plain", onclick: () => this.invert() }, said.invertMask),
      el("button", { type: "button", class: "plain", onclick: () => this.#clearMask() }, said.clearMask),
      el("button", { type: "button", class: "plain", onclick: () => this.clear() }, said.removeImage),
    );
  }

  #stroke(event) {
    if (event.type === "pointerdown") this.#paint.setPointerCapture(event.pointerId);
    const isDown = event.type === "pointerdown" || (event.type === "pointermove" && event.buttons);
    if (!isDown) {
      if (this.#last) this.#isRepainted();
      this.#last = null;
      return;
    }
    this.#mask = null;
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
    this.#isRepainted();
  }

  /** Paint as a mask says: white is painted, black is not. */
  #cover(mask) {
    const { width, height } = this.#paint;
    const pen = this.#paint.getContext("2d");
    pen.drawImage(mask, 0, 0, width, height);
    const image = pen.getImageData(0, 0, width, height);
    for (let at = 0; at < image.data.length; at += 4) {
      image.data[at + 3] = image.data[at];
      image.data.fill(255, at, at + 3);
    }
    pen.putImageData(image, 0, 0);
  }

  #isPainted() {
    const { width, height } = this.#paint;
    const pixels = this.#paint.getContext("2d").getImageData(0, 0, width, height).data;
    for (let at = 3; at < pixels.length; at += 4) if (pixels[at]) return true;
    return false;
  }

  /** The mask as a file, white where it is painted; null for none. */
  async #painted() {
    if (this.#mask || !this.#isPainted()) return this.#mask;
    const { width, height } = this.#paint;
    const mask = el("canvas", { width, height });
    const pen = mask.getContext("2d");
    pen.fillRect(0, 0, width, height);
    pen.drawImage(this.#paint, 0, 0);
    return new Promise((done) => mask.toBlob(done, "image/png"));
  }
}

function decoded(file) {
  return createImageBitmap(file).catch(() => null);
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
