/** The farm for those who run it. Each panel asks for itself and fails by itself. */

import { get, post } from "./api.js";
import { columns } from "./chart.js";
import { announce, el, fill } from "./dom.js";
import { keys } from "./keys.js";
import { act, ago, figure, hint, keeping, span, table } from "./panel.js";
import { words } from "./words.js";

const EVERY_MS = 3000;
const SLOWLY_MS = 15_000;
const said = words.farm;

class FarmPage extends HTMLElement {
  #timers = [];
  #on = false;

  connectedCallback() {
    this.#on = true;
    const panels = [
      [said.queue, queue, EVERY_MS],
      [said.throughput, throughput, SLOWLY_MS],
      [said.workers, workers, EVERY_MS],
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
    const once = async () => {
      clearTimeout(this.#timers[index]);
      try {
        if (!isRead(body)) await keeping(body, () => show(body, look));
      } catch (error) {
        if (error.status) fill(body, hint(refusal(error)));
      }
      if (this.#on) this.#timers[index] = setTimeout(look, every);
    };
    // One after another: an answer from before a press must not be drawn over the one from after it.
    let last = Promise.resolve();
    const look = () => (last = last.then(once, once));
    look();
    return el("section", { class: "panel", "aria-label": title }, el("h2", {}, title), body);
  }
}

/** Whether someone types or reads there, which fresh figures must not sweep away. */
function isRead(body) {
  const focused = document.activeElement;
  return body.contains(focused) && focused.tagName !== "BUTTON";
}

function refusal(error) {
  if (error.status === 403) return said.adminOnly;
  return error.status === 404 ? said.unavailable : error.message;
}

async function queue(body) {
  const found = await get("/v1/queue");
  // Hundreds may lie in folders: told one by one are those that have something to do or are loaded.
  const isNews = (one) => one.queued || one.running || one.resident_workers || one.loading_workers;
  const shown = found.checkpoints.filter(isNews);
  const others = found.checkpoints.length - shown.length;
  const rows = shown.map((one) => [
    one.checkpoint,
    one.queued,
    one.running,
    ago(one.oldest_queued_at),
    span(one.predicted_wait_s),
    span(one.backlog_s),
    `${one.resident_workers} / ${one.workers}`,
  ]);
  const counts = [figure(found.queued, said.queued), figure(found.running, said.running)];
  const figures = el("p", { class: "figures" }, counts);
  const rest = others ? hint(said.others(others)) : "";
  fill(body, figures, rows.length || others ? [table(said.queueColumns, rows), rest] : hint(said.noCheckpoints));
}

async function throughput(body) {
  const { since, minutes, checkpoints } = await get("/v1/throughput");
  const inMinute = (of, at) => checkpoints.reduce((all, one) => all + one[of][at], 0);
  const sum = (of) => Array.from({ length: minutes }, (_, at) => inMinute(of, at));
  const [pictures, succeeded, failed] = ["pictures", "succeeded", "failed"].map(sum);
  const waitedInAll = (at) => checkpoints.reduce((all, one) => all + one.succeeded[at] * (one.wait_s[at] ?? 0), 0);
  const waited = succeeded.map((jobs, at) => (jobs ? waitedInAll(at) / jobs : null));
  const total = (values) => values.reduce((all, value) => all + value, 0);
  const clock = { hour: "2-digit", minute: "2-digit" };
  const time = (at) => new Date(Date.parse(since) + at * 60_000).toLocaleTimeString([], clock);
  const says = (value, at) => `${time(at)}: ${value ?? "–"}`;
  const chart = (values, title, more = {}) => columns(values, { title, from: time(0), to: said.now, says, ...more });
  const totals = [figure(total(pictures), said.images), figure(total(failed), said.failed)];
  const figures = el("p", { class: "figures" }, totals);
  const waits = { format: words.job.seconds, says: (value, at) => `${time(at)}: ${span(value) ?? "–"}` };
  fill(
    body,
    figures,
    el(
      "div",
      { class: "charts" },
      chart(pictures, said.perMinute),
      chart(failed, said.failedPerMinute, { kind: "bad" }),
      chart(waited, said.waited, waits),
    ),
  );
}

async function workers(body, look) {
  const found = await get("/v1/workers");
  if (!found.workers.length) {
    fill(body, hint(said.noWorkers));
    return;
  }
  const titles = [...Object.values(said.columns), ""];
  fill(body, table(titles, found.workers.map((worker) => workerRow(worker, look))));
}

function workerRow(worker, look) {
  const [kind, state] = condition(worker);
  return [
    el("span", {}, el("span", { class: `dot ${kind}` }), worker.id, el("small", { class: "reason" }, state)),
    loadedOn(worker),
    el("span", { title: worker.warm.join(", ") }, said.ofLibrary(worker.warm.length + 1, worker.library)),
    worker.swaps,
    worker.device,
    `${worker.running} / ${worker.slots}`,
    worker.batch_fill?.toFixed(1),
    worker.tick_s ? `${Math.round(worker.tick_s * 1000)} ms` : null,
    worker.temperature_c ? `${Math.round(worker.temperature_c)} °C` : null,
    ago(worker.seen_at),
    worker.is_alive ? draining(worker, look) : "",
  ];
}

function loadedOn({ checkpoint, intends }) {
  return el("span", {}, checkpoint, intends ? el("small", { class: "reason" }, said.loading(intends)) : "");
}

function condition(worker) {
  if (worker.unfit) return ["bad", worker.unfit];
  if (!worker.is_alive) return ["bad", said.silent];
  return worker.draining_at ? ["slow", said.draining] : ["good", said.alive];
}

function draining(worker, look) {
  const path = `/v1/workers/${encodeURIComponent(worker.id)}`;
  // One name for both: the focus stays on the place, whatever the button says next.
  const name = `drain-${worker.id}`;
  return worker.draining_at
    ? act(name, said.undrain, () => post(`${path}/resume`), look)
    : act(name, said.drain, () => post(`${path}/drain`), look);
}

async function failures(body, look) {
  const { jobs, next_cursor: more } = await get("/v1/jobs?state=failed&limit=200");
  if (!jobs.length) {
    fill(body, hint(said.noFailures));
    return;
  }
  const codes = Map.groupBy(jobs, (job) => job.error?.code ?? "unknown");
  const again = async (code) => {
    const made = await post("/v1/jobs/retry", { error_code: code });
    announce(said.retried(Object.keys(made.jobs).length));
  };
  const rows = [...codes].map(([code, failed]) => [
    el("code", {}, code),
    more ? said.atLeast(failed.length) : failed.length,
    el("span", { dir: "auto", class: "reason" }, failed[0].error?.message),
    ago(failed[0].timings.finished_at),
    act(`retry-${code}`, said.retryAll, () => again(code), look),
  ]);
  fill(body, table(said.failureColumns, rows));
}

async function deliveries(body, look) {
  const found = await get("/v1/webhooks/deliveries?limit=50");
  if (!found.deliveries.length) {
    fill(body, hint(said.noWebhooks));
    return;
  }
  const rows = found.deliveries.map((one) => [
    one.type,
    el("span", { class: "address" }, one.url),
    said.deliveryStates[one.state] ?? one.state,
    tries(one.attempts),
    one.next_attempt_at ? said.inTime(words.job.seconds((Date.parse(one.next_attempt_at) - Date.now()) / 1000)) : null,
    ago(one.created_at),
    act(`replay-${one.id}`, said.replay, () => post(`/v1/webhooks/deliveries/${one.id}/replay`), look),
  ]);
  fill(body, table(said.deliveryColumns, rows));
}

/** Every attempt by its answer, the oldest first; when it was and how long it took stand in its title. */
function tries(attempts) {
  const one = ({ attempt, at, duration_s: took, status, error }) => {
    const isGood = status >= 200 && status < 300;
    const about = `${attempt}: ${new Date(at).toLocaleString()}, ${took.toFixed(1)} s${error ? `, ${error}` : ""}`;
    return el("li", { class: isGood ? "good" : "bad", title: about }, String(status ?? error ?? "–"));
  };
  return attempts.length ? el("ol", { class: "tries" }, attempts.map(one)) : null;
}

customElements.define("farm-page", FarmPage);

export function page() {
  return new FarmPage();
}
