/** One picture large, with everything that made it. */

import { FARM, blob, remove } from "./api.js";
import { acting, announce, download, el, fill } from "./dom.js";
import { alone } from "./fields.js";
import { outbox } from "./outbox.js";
import { Picture } from "./picture.js";
import { texts } from "./png.js";
import { asCurl, asPython, body, inputPaths } from "./recipes.js";
import { words } from "./words.js";

const said = words.viewer;

/** Open { job, image }. `list` gives the pictures to leaf through, `reuse` and `send` lead back to the form. */
export function openViewer(shown, { list, reuse, send, removed = () => {} }) {
  const dialog = el("dialog", { class: "viewer", "aria-label": said.details });
  const stage = el("div", { class: "stage" });
  const side = el("div", { class: "side" });
  const close = () => dialog.close();
  const step = (by) => {
    const all = list();
    const at = all.findIndex(({ job, image }) => job.id === shown.job.id && image.index === shown.image.index);
    if (all[at + by]) {
      shown = all[at + by];
      show();
    }
  };
  const show = () => {
    const { job, image } = shown;
    const name = words.job.picture(job.params.prompt.slice(0, 80));
    fill(stage, new Picture(image.url, name, { width: image.width, height: image.height }));
    fill(side, el("p", { class: "text", dir: "auto" }, job.params.prompt), actions(), facts());
  };
  const copy = (label, make) =>
    button(label, async () => {
      await navigator.clipboard.writeText(await make(params(), shown.job.id, FARM));
      announce(said.copied);
    });
  // Of the one picture that is shown.
  const params = () => alone(shown.job.params, shown.image);
  const again = (changes) => async () => {
    close();
    const wanted = { ...body(params(), shown.job.id), ...changes() };
    const hasArrived = await outbox.submit({ kind: "job", about: { ...params(), ...wanted }, body: wanted });
    if (hasArrived) announce(said.submitted);
  };
  const reused = (then) => async () => {
    close();
    await then();
  };
  const bytes = () => blob(`${shown.image.url}?inline=true`);
  // What the PNG itself carries: every tool reads it, and so does this form.
  const asText = async () => texts(await (await bytes()).arrayBuffer()).parameters;
  const actions = () =>
    el(
      "div",
      { class: "actions" },
      button(said.download, async () => download(await bytes(), `${shown.job.id}-${shown.image.index}.png`)),
      button(said.reuse, reused(async () => reuse(shown.job, params()))),
      button(said.vary, again(() => ({ variation: { seed: drawn(), strength: 0.15 } }))),
      button(said.upscale, again(() => ({ upscale: 2 }))),
      button(said.send, async () => {
        const picture = await bytes();
        close();
        await send(new File([picture], "picture.png", { type: "image/png" }));
      }),
      copy(said.copyText, asText),
      copy(said.copyCurl, asCurl),
      copy(said.copyPython, asPython),
      dangerous(said.remove, async () => {
        if (!confirm(words.gallery.removeSure(1))) return;
        await remove(`/v1/jobs/${shown.job.id}`);
        removed(shown.job.id);
        close();
      }),
    );
  const facts = () => el("dl", {}, told(shown).map(([name, value]) => fact(label(name), value)), inputs(shown.job));
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => event.target === dialog && close());
  fill(
    dialog,
    el("div", { class: "tools" },
      el("button", { type: "button", class: "plain", "aria-label": said.previous, onclick: () => step(-1) }, "‹"),
      el("button", { type: "button", class: "plain", "aria-label": said.next, onclick: () => step(1) }, "›"),
      el("button", { type: "button", class: "plain", "aria-label": said.close, onclick: close }, "×")),
    el("div", { class: "halves" }, stage, side),
  );
  document.body.append(dialog);
  show();
  dialog.showModal();
}

function button(name, act) {
  return acting(name, act, { class: "" });
}

function drawn() {
  return Math.floor(Math.random() * 2 ** 32);
}

function dangerous(name, act) {
  const made = button(name, act);
  made.classList.add("danger");
  return made;
}

/** What is worth saying of a picture besides its prompt. */
function told({ job, image }) {
  const { init_image: init, mask_image: mask, ...params } = job.params;
  const all = { ...params, seed: image.seed, job: job.id, worker: job.worker };
  const isSaid = (value) => value !== null && value !== undefined && value !== "" && value.length !== 0;
  // What leaves the picture as it is goes without saying.
  const fitted = job.params.init_image ? {} : { resize_mode: "stretch" };
  const idle = { clip_skip: 1, upscale: 1, num_images: 1, ...fitted };
  return Object.entries(all).filter(([name, value]) => name !== "prompt" && isSaid(value) && idle[name] !== value);
}

/** The pictures that a job started from. */
function inputs({ id, params }) {
  const shape = { width: params.width, height: params.height };
  return Object.entries(inputPaths(params, id)).map(([name, path]) => {
    const picture = new Picture(path, label(name), shape);
    return el("div", {}, el("dt", {}, label(name)), el("dd", { class: "input" }, picture));
  });
}

function fact(name, value) {
  const text = typeof value === "object" ? JSON.stringify(value) : String(value);
  return el("div", {}, el("dt", {}, name), el("dd", { dir: "auto" }, text));
}

function label(name) {
  return words.fields[name]?.[0] ?? words.viewer.labels[name] ?? name.replaceAll("_", " ");
}
