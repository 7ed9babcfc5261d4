/** The panel of API keys: those there are, and a form that makes one. */

import { get, patch, post, remove } from "./api.js";
import { announce, el, fill } from "./dom.js";
import { changeLimits, limitField, limitInputs, numberInput } from "./key-limits.js";
import { limits } from "./limits.js";
import { act, ago, hint, table } from "./panel.js";
import { words } from "./words.js";

const said = words.farm;
const DAY_S = 86_400;
const { name: NAME, scopes: SCOPES, expires_in: LIFETIME } = limits.NewKey;
const DAYS = { min: 1, max: Math.floor(LIFETIME.maximum / DAY_S), step: 1, placeholder: said.never };

/** Show the keys. The form is built once: what is typed into it outlives every redrawing. */
export async function keys(body, look) {
  const found = await get("/v1/keys");
  if (!body.querySelector("form")) fill(body, el("div", { class: "rows" }), newKey(look));
  const alive = found.keys.filter((one) => !one.revoked_at);
  const rows = alive.map((one) => row(one, look));
  fill(body.querySelector(".rows"), rows.length ? table(said.keyColumns, rows) : hint(said.noKeys));
}

function row(key, look) {
  const path = `/v1/keys/${key.id}`;
  const pause = () => patch(path, { paused: !key.paused });
  const revoke = async () => confirm(said.revokeSure(key.name)) && remove(path);
  return [
    el("span", { dir: "auto" }, key.name, key.paused ? el("small", {}, said.paused) : null),
    el("code", {}, key.prefix),
    key.scopes.join(", "),
    `${key.weight} / ${key.max_priority}`,
    `${key.max_running ?? "∞"} / ${key.max_queued ?? "∞"} / ${key.requests_per_minute ?? "∞"}`,
    ago(key.last_used_at) ?? said.never,
    key.expires_at ? new Date(key.expires_at).toLocaleDateString() : said.never,
    el(
      "span",
      { class: "row" },
      act(`limits-${key.id}`, said.changeLimits, () => changeLimits(key), look),
      act(`pause-${key.id}`, key.paused ? said.resumeKey : said.pauseKey, pause, look),
      act(`revoke-${key.id}`, said.revoke, revoke, look),
    ),
  ];
}

function newKey(look) {
  const named = { "aria-label": said.keyName, placeholder: said.keyName };
  const name = el("input", { required: true, maxLength: NAME.maxLength, ...named });
  const box = (scope) => el("input", { type: "checkbox", value: scope, checked: SCOPES.default.includes(scope) });
  const scopes = SCOPES.enum.map(box);
  const limits = { ...limitInputs(), expires_in: numberInput(DAYS) };
  const fields = Object.entries(limits).map(limitField);
  const once = el("p", { class: "once", role: "status", hidden: true });
  const create = async (event) => {
    event.preventDefault();
    try {
      const made = await post("/v1/keys", wanted(name, scopes, limits));
      once.hidden = false;
      fill(once, `${said.keyOnce(made.name)} `, el("code", {}, made.token), " ", copying(made.token));
      event.target.reset();
      look();
    } catch (error) {
      announce(error.message, { error: true });
    }
  };
  return el(
    "form",
    { class: "new-key", "aria-label": said.newKey, onsubmit: create },
    el(
      "div",
      { class: "row" },
      name,
      scopes.map((scope) => el("label", { class: "check" }, scope, ` ${scope.value}`)),
      el("button", { type: "submit" }, said.create),
    ),
    el("details", {}, el("summary", {}, said.limits), el("div", { class: "grid" }, fields)),
    once,
  );
}

/** The body of POST /v1/keys; what is left empty keeps the farm's own default. */
function wanted(name, scopes, limits) {
  const given = Object.entries(limits).filter(([, input]) => input.value !== "");
  const body = Object.fromEntries(given.map(([limit, input]) => [limit, Number(input.value)]));
  if (body.expires_in) body.expires_in *= DAY_S;
  const chosen = scopes.filter(({ checked }) => checked).map(({ value }) => value);
  return { ...body, name: name.value.trim(), scopes: chosen };
}

function copying(token) {
  const copy = () => navigator.clipboard.writeText(token).then(
    () => announce(words.viewer.copied),
    (error) => announce(error.message, { error: true }),
  );
  return el("button", { type: "button", class: "plain", onclick: copy }, said.copy);
}
