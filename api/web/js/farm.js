/** The farm for those who run it: queue, workers, failures, webhooks, keys. Each panel asks for itself and fails by itself. */

import { get, patch, post, remove } from "./api.js";
import { columns } from "./chart.js";
import { announce, el, fill } from "./dom.js";
import { words } from "./words.js";

const EVERY_MS = 3000;
const SLOWLY_MS = 15_000;
const HOUR_MS = 3_600_000;
const MINUTES = 60;
const CHART_PAGES = 5;
const said = words.farm;
const seconds = words.job.seconds;

class FarmPage extends HTMLElement {
  #timers = [];
  #on = false;

  connectedCallback() {
    this.#on = true;
    const panels = [
      [said.queue, queue, EVERY_MS],
      [said.workers, workers, EVERY_MS],
      [said.throughput, throughput, SLOWLY_MS],
      [said.failures, failures, SLOWLY_MS],
      [said.webhooks, deliveries, SLOWLY_MS],
      [said.keys, keys, SLOWLY_MS],
    ];
    fill(this, panels.map(([title, show, every]) => this.#panel(title, show, every)));
  }

  disconnectedCallback() {
    this.#on = false;
    this.#timers.forEach(clearTimeout);
  }

  #panel(title, show, every) {
    const body = el("div", { class: "panel-body" });
    const index = this.#timers.push(null) - 1;
    const look = async () => {
      clearTimeout(this.#timers[index]);
      try {
        // What is being typed or read out must not be swept away by fresh figures.
        if (!body.contains(document.activeElement) || document.activeElement.tagName === "BUTTON") await keeping(body, () => show(body, look));
      } catch (error) {
        if (error.status) fill(body, el("p", { class: "hint" }, refusal(error)));
      }
      if (this.#on) this.#timers[index] = setTimeout(look, every);
    };
    look();
    return el("section", { class: "panel", "aria-label": title }, el("h2", {}, title), body);
  }
}

/** Redraw and give the focus back to the button that had it. */
async function keeping(body, draw) {
  await draw();
  const wanted = body.dataset.focus;
  if (wanted && document.activeElement === document.body) body.querySelector(`[data-act="${CSS.escape(wanted)}"]`)?.focus();
}

function refusal(error) {
  if (error.status === 403) return said.adminOnly;
  return error.status === 404 ? said.unavailable : error.message;
}

/** A button that acts, says what went wrong, and has its panel drawn again. */
function act(name, label, run, look) {
  const press = async (event) => {
    event.target.closest(".panel-body").dataset.focus = name;
    event.target.disabled = true;
    await run().catch((error) => announce(error.message, { error: true }));
    look();
  };
  return el("button", { type: "button", class: "plain", dataset: { act: name }, onclick: press }, label);
}

function table(titles, rows) {
  return el(
    "div",
    { class: "scroll", tabIndex: 0, role: "region", "aria-label": titles[0] },
    el("table", {}, el("thead", {}, el("tr", {}, titles.map((title) => el("th", { scope: "col" }, title || el("span", { class: "unseen" }, words.farm.actions))))), el("tbody", {}, rows.map((cells) => el("tr", {}, cells.map((cell) => el("td", {}, cell ?? "–")))))),
  );
}

const ago = (time) => (time ? said.ago(seconds((Date.now() - Date.parse(time)) / 1000)) : null);
const span = (s) => (s === null || s === undefined ? null : seconds(s));

async function queue(body) {
  const found = await get("/v1/queue");
  const titles = [words.fields.checkpoint[0], said.waiting, said.running, said.oldest, said.wait, said.backlog, said.workers];
  const rows = found.checkpoints.map((one) => [one.checkpoint, one.queued, one.running, ago(one.oldest_queued_at), span(one.predicted_wait_s), span(one.backlog_s), one.workers]);
  fill(body, el("p", { class: "figures" }, figure(found.queued, said.waiting), figure(found.running, said.running)), table(titles, rows));
}

function figure(value, name) {
  return el("span", {}, el("b", {}, String(value)), ` ${name}`);
}

async function workers(body, look) {
  const found = await get("/v1/workers");
  if (!found.workers.length) {
    fill(body, el("p", { class: "hint" }, said.noWorkers));
    return;
  }
  const names = ["id", "checkpoint", "device", "running", "batch_fill", "tick_s", "temperature", "seen_at"];
  fill(body, table([...names.map((name) => said.columns[name]), ""], found.workers.map((worker) => workerRow(worker, look))));
}

function workerRow(worker, look) {
  const state = worker.unfit ? worker.unfit : !worker.is_alive ? said.silent : worker.draining_at ? said.draining : said.alive;
  const kind = worker.unfit || !worker.is_alive ? "bad" : worker.draining_at ? "slow" : "good";
  const path = `/v1/workers/${encodeURIComponent(worker.id)}`;
  const button = worker.draining_at
    ? act(`undrain-${worker.id}`, said.undrain, () => post(`${path}/resume`), look)
    : act(`drain-${worker.id}`, said.drain, () => post(`${path}/drain`), look);
  return [
    el("span", {}, el("span", { class: `dot ${kind}`, title: state }), `${worker.id} `, el("small", {}, state)),
    worker.checkpoint,
    worker.device,
    `${worker.running} / ${worker.slots}`,
    worker.batch_fill?.toFixed(1),
    worker.tick_s ? `${Math.round(worker.tick_s * 1000)} ms` : null,
    worker.temperature_c ? `${Math.round(worker.temperature_c)} °C` : null,
    ago(worker.seen_at),
    worker.is_alive ? button : "",
  ];
}

async function throughput(body) {
  const minutes = new Array(MINUTES).fill(0);
  let cursor = "";
  for (let page = 0; page < CHART_PAGES; page += 1) {
    const found = await get(`/v1/jobs?state=succeeded&limit=200${cursor && `&cursor=${cursor}`}`);
    for (const job of found.jobs) {
      const age = Math.floor((Date.now() - Date.parse(job.timings.finished_at)) / 60_000);
      if (age >= 0 && age < MINUTES) minutes[MINUTES - 1 - age] += job.images.length;
    }
    const last = found.jobs.at(-1);
    cursor = found.next_cursor ?? "";
    if (!cursor || Date.now() - Date.parse(last.timings.created_at) > HOUR_MS) break;
  }
  fill(body, columns(minutes, { title: said.throughput }));
}

async function failures(body, look) {
  const { jobs } = await get("/v1/jobs?state=failed&limit=200");
  if (!jobs.length) {
    fill(body, el("p", { class: "hint" }, said.noFailures));
    return;
  }
  const codes = Map.groupBy(jobs, (job) => job.error?.code ?? "unknown");
  const again = async (failed) => {
    for (const job of failed) await post(`/v1/jobs/${job.id}/retry`);
    announce(said.retried(failed.length));
  };
  const rows = [...codes].map(([code, failed]) => [
    el("code", {}, code),
    String(failed.length),
    el("span", { dir: "auto" }, failed[0].error?.message),
    ago(failed[0].timings.finished_at),
    act(`retry-${code}`, said.retryAll, () => again(failed), look),
  ]);
  fill(body, table(said.failureColumns, rows));
}

async function deliveries(body, look) {
  const found = await get("/v1/webhooks/deliveries?limit=50");
  if (!found.deliveries.length) {
    fill(body, el("p", { class: "hint" }, said.noWebhooks));
    return;
  }
  const rows = found.deliveries.map((one) => [
    one.type,
    el("span", { class: "address" }, one.url),
    said.deliveryStates[one.state] ?? one.state,
    String(one.attempts.length),
    one.attempts.at(-1)?.error ?? String(one.attempts.at(-1)?.status ?? "–"),
    ago(one.created_at),
    act(`replay-${one.id}`, said.replay, () => post(`/v1/webhooks/deliveries/${one.id}/replay`), look),
  ]);
  fill(body, table(said.deliveryColumns, rows));
}

async function keys(body, look) {
  const found = await get("/v1/keys");
  const rows = found.keys.filter((one) => !one.revoked_at).map((one) => [
    one.name,
    el("code", {}, one.prefix),
    one.scopes.join(", "),
    String(one.weight),
    `${one.max_running ?? "∞"} / ${one.max_queued ?? "∞"}`,
    ago(one.last_used_at),
    el("span", { class: "row" }, act(`pause-${one.id}`, one.paused ? said.resumeKey : said.pauseKey, () => patch(`/v1/keys/${one.id}`, { paused: !one.paused }), look),
      act(`revoke-${one.id}`, said.revoke, async () => confirm(said.revokeSure(one.name)) && remove(`/v1/keys/${one.id}`), look)),
  ]);
  const kept = body.querySelector(".once");
  fill(body, table(said.keyColumns, rows), newKey(body, look), kept);
}

function newKey(body, look) {
  const name = el("input", { name: "name", required: true, maxLength: 100, "aria-label": said.keyName, placeholder: said.keyName });
  const create = async (event) => {
    event.preventDefault();
    try {
      const made = await post("/v1/keys", { name: name.value.trim() });
      body.querySelector(".once")?.remove();
      body.append(el("p", { class: "once", role: "status" }, `${said.keyOnce} `, el("code", {}, made.token)));
      name.value = "";
      name.blur();
      look();
    } catch (error) {
      announce(error.message, { error: true });
    }
  };
  return el("form", { class: "row", "aria-label": said.newKey, onsubmit: create }, name, el("button", { type: "submit" }, said.create));
}

customElements.define("farm-page", FarmPage);

export function page() {
  return new FarmPage();
}
