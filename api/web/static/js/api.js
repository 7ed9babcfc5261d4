/** The public /v1 API, and nothing but it. Every failure is an ApiError that says what to do. */

import { words } from "./words.js";

// The console's own place tells under which path a proxy serves the farm.
const ROOT = new URL("../..", import.meta.url);

/** The farm's address, for programs. */
export const FARM = ROOT.href.slice(0, -1);

const KEY = "farm.key";
// A farm that takes longer to say that it lives, or to answer what is asked every second, is as good as away.
const PROBE_MS = 5000;
const ANSWER_MS = 30_000;
const listeners = new Set();
let reachable = true;

export class ApiError extends Error {
  constructor(status, code, message, { detail = message, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.detail = detail;
    this.retryAfter = retryAfter;
  }
}

/** The API key of this tab; it leaves with the tab. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  /** What tells keys apart and is no secret: the part by which admins know it. */
  name: () => /^farm_([^_]+)_/.exec(key.get())?.[1] ?? (key.get() ? "other" : ""),
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** Hear whether the farm can be reached: called with true or false when that changes. */
export function onReachable(listener) {
  listeners.add(listener);
  listener(reachable);
}

addEventListener("offline", () => tellReachable(false));

/** Ask the farm whether it is there: nothing else says so, for what a browser has kept comes without it. */
export async function probe() {
  const asked = fetch(address("/healthz"), { cache: "no-store", signal: AbortSignal.timeout(PROBE_MS) });
  if ((await asked.catch(() => null))?.ok) tellReachable(true);
  return reachable;
}

function tellReachable(now) {
  if (now === reachable) return;
  reachable = now;
  for (const listener of listeners) listener(now);
}

function headers(extra = {}) {
  const token = key.get();
  return token ? { ...extra, Authorization: `Bearer ${token}` } : extra;
}

async function exchange(method, path, { body, signal, ...extra } = {}) {
  const asked = key.get();
  let response;
  try {
    response = await fetch(address(path), {
      method,
      signal,
      headers: headers(body === undefined ? extra.headers : { "Content-Type": "application/json", ...extra.headers }),
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    tellReachable(false);
    throw new ApiError(0, "unreachable", words.errors.unreachable);
  }
  if (response.status === 502 || response.status === 504) tellReachable(false);
  // Asked with another key than there is now, it says nothing about this one.
  if (response.status === 401 && asked === key.get()) dispatchEvent(new CustomEvent("farm:key-needed"));
  if (!response.ok) throw await refusal(response);
  return response;
}

/** A path of the API as the farm is reached; links that the farm wrote are so already. */
function address(path) {
  return path.startsWith(ROOT.pathname) ? path : ROOT.pathname + path.slice(1);
}

async function refusal(response) {
  const problem = await response.json().catch(() => ({}));
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  const advice = words.errors[problem.code] ?? words.errors[response.status];
  const detail = problem.detail ?? `${response.status} ${response.statusText}`;
  const message = advice ? `${detail} ${advice}` : detail;
  return new ApiError(response.status, problem.code ?? `http_${response.status}`, message, { detail, retryAfter });
}

/** GET JSON. */
export async function get(path) {
  return (await exchange("GET", path, { signal: AbortSignal.timeout(ANSWER_MS) })).json();
}

/** POST JSON and read JSON. */
export async function post(path, body = {}, options = {}) {
  const response = await exchange("POST", path, { body, ...options });
  return response.status === 204 ? null : response.json();
}

/** PUT JSON under a name of one's own and read JSON. */
export async function put(path, body) {
  return (await exchange("PUT", path, { body })).json();
}

/** Change part of a thing. */
export async function patch(path, body) {
  return (await exchange("PATCH", path, { body })).json();
}

/** Delete a thing. */
export async function remove(path) {
  await exchange("DELETE", path);
}

/** GET bytes, with the key that an <img> could not send. */
export async function blob(path, options) {
  return (await exchange("GET", path, options)).blob();
}

/** A new id, ordered by time as the farm's own are (UUID version 7). crypto.randomUUID is not there on plain HTTP. */
export function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  const [view, now] = [new DataView(bytes.buffer), Date.now()];
  view.setUint32(0, now / 2 ** 16);
  view.setUint16(4, now % 2 ** 16);
  view.setUint16(6, 0x7000 | (view.getUint16(6) & 0x0fff));
  view.setUint8(8, 0x80 | (view.getUint8(8) & 0x3f));
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

/** Follow a server-sent event stream until it ends: `hear(event, data)` for each event. */
export async function stream(path, hear, { signal } = {}) {
  const response = await exchange("GET", path, { signal, headers: { Accept: "text/event-stream" } });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    pending += value.replaceAll("\r", "");
    const blocks = pending.split("\n\n");
    pending = blocks.pop();
    for (const block of blocks) {
      const event = parsed(block);
      if (event) hear(event.name, event.data);
    }
  }
}

function parsed(block) {
  let name = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
  return data.length ? { name, data: JSON.parse(data.join("\n")) } : null;
}
