/** How full a prompt's chunks of 75 tokens are and where each begins: the farm's count, and a guess until it comes. */

import { post } from "./api.js";
import { el, fill } from "./dom.js";
import { CHUNK, chunks } from "./prompts.js";
import { words } from "./words.js";

const RESTED_MS = 400;
const said = words.create;

/** A meter for one prompt: `guess` from its text at once, `show` what the farm counted. */
export function tokenMeter() {
  const gauge = el("span", { class: "gauge", "aria-hidden": "true" });
  const count = el("span", { class: "count" });
  const marks = el("ol", { class: "chunks", "aria-label": said.chunks(CHUNK), hidden: true });
  const draw = (parts, text) => {
    fill(gauge, parts.map(({ tokens }) => el("meter", { max: CHUNK, value: tokens })));
    count.textContent = text;
    marks.hidden = parts.length < 2;
    fill(marks, parts.map(({ tokens, begins }) => el("li", { dir: "auto" }, said.chunk(tokens, begins))));
  };
  return {
    line: el("span", { class: "tokens" }, gauge, count),
    marks,
    guess(text) {
      const parts = chunks(text).map((tokens) => ({ tokens, begins: "" }));
      const total = parts.reduce((sum, { tokens }) => sum + tokens, 0);
      draw(parts, text ? said.aboutTokens(total, parts.length * CHUNK) : said.tokens(0, CHUNK));
    },
    show({ tokens, chunks: parts }) {
      draw(parts, said.tokens(tokens, parts.length * CHUNK));
    },
  };
}

/** Have the farm count once typing rests: `read` gives a body for /v1/prompts/tokens, `boxes` its fields' meters. */
export function tokenCounter(read, boxes) {
  let rest = null;
  let asked = null;
  const ask = async () => {
    asked = new AbortController();
    const { signal } = asked;
    // Unreachable or refused: the guess stands, and submitting says what is wrong.
    const found = await post("/v1/prompts/tokens", read(), { signal }).catch(() => null);
    if (!found || signal.aborted) return;
    for (const [name, box] of Object.entries(boxes())) box.meter.show(found[name]);
  };
  return () => {
    clearTimeout(rest);
    asked?.abort();
    if (Object.values(boxes()).some((box) => box.read())) rest = setTimeout(ask, RESTED_MS);
  };
}
