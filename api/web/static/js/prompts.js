/** Prompts as people edit them: weights on selected words, and about how many tokens there are. Pure. */

import { limits } from "./limits.js";

const STEP = 0.1;
const LORA_TAGS = new Set(["lora", "lyco"]);
export const CHUNK = limits.TokenCounts.chunk_tokens.default;

/** Raise (+1) or lower (-1) the weight of the selection, or of the word at the cursor. */
export function emphasized({ text, start, end }, direction) {
  [start, end] = bounds(text, start, end);
  if (start === end) return { text, start, end };
  const inside = text.slice(start, end);
  const before = text.slice(0, start);
  const after = text.slice(end);
  const opened = /\($/.test(before) && /^:\s*-?[\d.]+\)/.exec(after);
  const weight = opened ? Number(/-?[\d.]+/.exec(opened[0])[0]) : 1;
  const next = Math.round((weight + direction * STEP) * 100) / 100;
  const head = opened ? before.slice(0, -1) : before;
  const tail = opened ? after.slice(opened[0].length) : after;
  if (next === 1) return { text: head + inside + tail, start: head.length, end: head.length + inside.length };
  const made = `(${inside}:${next})`;
  return { text: head + made + tail, start: head.length + 1, end: head.length + 1 + inside.length };
}

function bounds(text, start, end) {
  if (start !== end) {
    while (start < end && /\s/.test(text[start])) start += 1;
    while (end > start && /\s/.test(text[end - 1])) end -= 1;
    return [start, end];
  }
  const stop = /[\s,()[\]:]/;
  while (start > 0 && !stop.test(text[start - 1])) start -= 1;
  while (end < text.length && !stop.test(text[end])) end += 1;
  return [start, end];
}

/** About how many tokens each chunk of a prompt holds; BREAK begins a new one. CLIP's tokens differ in rare words. */
export function chunks(prompt) {
  const unweighted = prompt.replace(/<lora:[^>]*>/g, " ").replace(/:\s*-?[\d.]+\s*([)\]])/g, "$1");
  const plain = unweighted.replace(/(?<!\\)[()[\]]/g, " ");
  const found = [];
  for (const part of plain.split(/\bBREAK\b/)) {
    let count = (part.match(/[\p{L}]+|\p{N}|[^\s\p{L}\p{N}]+/gu) ?? []).reduce((sum, word) => sum + tokens(word), 0);
    for (; count > CHUNK; count -= CHUNK) found.push(CHUNK);
    found.push(count);
  }
  return found;
}

/** A prompt without its `<lora:…>` tags: what is left is what the farm reads, once it has taken the LoRAs. */
export function untagged(prompt) {
  return prompt.replace(/<([\p{L}\p{N}_]+):(?!>)[^>]*>/gu, (tag, kind) => (LORA_TAGS.has(kind) ? "" : tag));
}

function tokens(word) {
  return word.length <= 8 ? 1 : Math.ceil(word.length / 6);
}
