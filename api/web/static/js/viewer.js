/** One picture large, with everything that made it. */

import { FARM, blob, post, remove } from "./api.js";
import { announce, download, el, fill } from "./dom.js";
import { jobs } from "./jobs.js";
import { Picture } from "./picture.js";
import { texts } from "./png.js";
import { asCurl, asPython, body } from "./recipes.js";
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
      await navigator.clipboard.writeText(await make(shown.job.params, shown.image.seed, FARM));
      announce(said.copied);
    });
  const again = (changes) => async () => {
    jobs.take(await post("/v1/jobs", { ...body(shown.job.params, shown.image.seed), ...changes() }));
    jobs.refresh();
    announce(said.submitted);
    close();
  };
  const reused = (then) => async () => {
    close();
    await then();
  };
  const bytes = () => blob(`${shown.image.url}?inline=true`);
  // What the PNG itself carries: every tool reads it, and so does this form.
  const asText = async () => texts(await (await bytes()).arrayBuffer()).parameters;
  // A picture that a job started from cannot be named again, and without it another one would come of it.
  const isWhole = () => !shown.job.params.init_image;
  const actions = () =>
    el(
      "div",
      { class: "actions" },
      button(said.download, async () => download(await bytes(), `${shown.job.id}-${shown.image.index}.png`)),
      button(said.reuse, reused(async () => reuse({ ...shown.job.params, seed: shown.image.seed }))),
      isWhole() && button(said.vary, again(() => ({ variation: { seed: drawn(), strength: 0.15 } }))),
      isWhole() && button(said.upscale, again(() => ({ upscale: 2 }))),
      button(said.send, async () => {
        const picture = await bytes();
        close();
        await send(new File([picture], "picture.png", { type: "image/png" }));
      }),
      copy(said.copyText, asText),
      isWhole() && copy(said.copyCurl, asCurl),
      isWhole() && copy(said.copyPython, asPython),
      dangerous(said.remove, async () => {
        if (!confirm(words.gallery.removeSure(1))) return;
        await remove(`/v1/jobs/${shown.job.id}`);
        removed(shown.job.id);
        close();
      }),
    );
  const facts = () => el("dl", {}, told(shown).map(([name, value]) => fact(label(name), value)));
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
  const press = () => act().catch((error) => announce(error.message, { error: true }));
  return el("button", { type: "button", onclick: press }, name);
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
  const all = { ...job.params, seed: image.seed, job: job.id, worker: job.worker };
  const isSaid = (value) => value !== null && value !== undefined && value !== "" && value.length !== 0;
  // What leaves the picture as it is goes without saying.
  const fitted = job.params.init_image ? {} : { resize_mode: "stretch" };
  const idle = { clip_skip: 1, upscale: 1, num_images: 1, ...fitted };
  return Object.entries(all).filter(([name, value]) => name !== "prompt" && isSaid(value) && idle[name] !== value);
}

function fact(name, value) {
  const text = typeof value === "object" ? JSON.stringify(value) : String(value);
  return el("div", {}, el("dt", {}, name), el("dd", { dir: "auto" }, text));
}

function label(name) {
  return words.fields[name]?.[0] ?? words.viewer.labels[name] ?? name.replaceAll("_", " ");
}
