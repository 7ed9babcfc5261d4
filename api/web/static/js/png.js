/** The text inside a PNG: the farm's own JSON, or A1111's parameters. Pure, over bytes. */

import { alone } from "./fields.js";
import { words } from "./words.js";

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];

/** Texts of a PNG by keyword; null for bytes that are no PNG. Compressed texts are left out. */
export function texts(buffer) {
  const bytes = new Uint8Array(buffer);
  if (SIGNATURE.some((byte, index) => bytes[index] !== byte)) return null;
  const view = new DataView(buffer);
  const found = {};
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    const type = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    const data = bytes.subarray(at + 8, at + 8 + length);
    if (type === "tEXt" || type === "iTXt") Object.assign(found, text(type, data));
    if (type === "IEND") break;
    at += 12 + length;
  }
  return found;
}

function text(type, data) {
  const end = data.indexOf(0);
  const keyword = new TextDecoder("latin1").decode(data.subarray(0, end));
  if (type === "tEXt") return { [keyword]: new TextDecoder("latin1").decode(data.subarray(end + 1)) };
  if (data[end + 1] !== 0) return {};
  const language = data.indexOf(0, end + 3);
  const translated = data.indexOf(0, language + 1);
  return { [keyword]: new TextDecoder().decode(data.subarray(translated + 1)) };
}

/** Parameters of the farm's shape from a PNG's texts, or null. `samplers` as GET /v1/samplers lists them. */
export function params(found, samplers) {
  if (found?.farm) {
    try {
      const own = JSON.parse(found.farm);
      return alone(own, { index: own.image ?? 0, seed: own.image_seed ?? own.seed });
    } catch {
      // Not ours after all; A1111's text may still be there.
    }
  }
  return found?.parameters ? infotext(found.parameters, samplers) : null;
}

/** Whether a text is A1111's parameters, as copied from a picture. */
export function isInfotext(text) {
  return /^Steps: \d+, /m.test(text);
}

/** A1111's parameters text in the farm's words. */
export function infotext(text, samplers) {
  const lines = text.trim().split("\n");
  const settings = /^Steps: /.test(lines.at(-1)) ? lines.pop() : "";
  const at = lines.findIndex((line) => line.startsWith("Negative prompt:"));
  const prompt = (at < 0 ? lines : lines.slice(0, at)).join("\n").trim();
  const negative = at < 0 ? "" : lines.slice(at).join("\n").slice("Negative prompt:".length).trim();
  const facts = settings.matchAll(/\s*([\w /()-]+):\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)/g);
  const given = Object.fromEntries([...facts].map(([, name, value]) => [name.trim(), value.trim()]));
  const [width, height] = (given.Size ?? "").split("x").map(Number);
  const found = { prompt, negative_prompt: negative, ...walk(given, samplers) };
  const numbers = { steps: "Steps", guidance_scale: "CFG scale", seed: "Seed", clip_skip: "Clip skip" };
  for (const [name, label] of Object.entries(numbers)) if (given[label]) found[name] = Number(given[label]);
  if (width && height) Object.assign(found, { width, height });
  if (given["Variation seed"]) {
    const strength = Number(given["Variation seed strength"] ?? 0);
    found.variation = { seed: Number(given["Variation seed"]), strength };
  }
  if (given.Model) found.checkpoint = given.Model;
  if (given["Hires upscale"]) found.hires = hires(given, found);
  return found;
}

function hires(given, { width, height, steps }) {
  const scale = Number(given["Hires upscale"]);
  const label = given["Hires upscaler"] ?? words.options.hires_upscaler.latent;
  return {
    width: width * scale,
    height: height * scale,
    steps: Number(given["Hires steps"] ?? 0) || steps,
    strength: Number(given["Denoising strength"] ?? 0.7),
    upscaler: nameOf(words.options.hires_upscaler, label) ?? label,
    checkpoint: given["Hires checkpoint"]?.replace(/ \[[0-9a-f]+\]$/, "") ?? null,
  };
}

/** The farm's name for what others write as a label, in any case; undefined for what it does not have. */
function nameOf(labels, label = "") {
  return Object.keys(labels).find((name) => labels[name].toLowerCase() === label.toLowerCase());
}

function walk(given, samplers) {
  const label = (given.Sampler ?? "").toLowerCase();
  const schedule = nameOf(words.schedules, given["Schedule type"]);
  const exact = samplers.find((sampler) => sampler.label.toLowerCase() === label);
  if (exact) return { sampler: exact.name, schedule: exact.schedules.includes(schedule) ? schedule : "" };
  // Older files name both at once: "DPM++ 2M Karras".
  for (const sampler of samplers) {
    const rest = nameOf(words.schedules, label.slice(sampler.label.length).trim());
    if (label.startsWith(sampler.label.toLowerCase()) && sampler.schedules.includes(rest)) {
      return { sampler: sampler.name, schedule: rest };
    }
  }
  return {};
}
