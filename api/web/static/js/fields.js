/** The settings of a picture: their kinds, ranges and starting values, and how they become a submission. Pure. */

import { limits } from "./limits.js";
import { untagged } from "./prompts.js";

const { Submission, VariationChoice, HiresChoice, InpaintChoice } = limits;

/** A number of the api: in a form it moves by `step` and starts at its default, unless `changes` say otherwise. */
export function number({ minimum, exclusiveMinimum, maximum, multipleOf, default: start }, step, changes = {}) {
  const low = exclusiveMinimum === undefined ? minimum : exclusiveMinimum + step;
  return { kind: "number", low, high: maximum, step: multipleOf ?? step, start, ...changes };
}

const choice = (start) => ({ kind: "choice", start, options: null });
const choiceOf = ({ enum: options, default: start }) => ({ kind: "choice", start, options });

export const FIELDS = {
  checkpoint: choice(""),
  steps: number(Submission.steps, 1),
  guidance_scale: number(Submission.guidance_scale, 0.5),
  sampler: choice("euler_a"),
  schedule: choice(""),
  width: number(Submission.width, 8, { start: 512 }),
  height: number(Submission.height, 8, { start: 512 }),
  // Empty draws one, as -1 does.
  seed: number(Submission.seed, 1, { low: 0 }),
  num_images: number(Submission.num_images, 1),
  clip_skip: number(Submission.clip_skip, 1),
  vae: choice(""),
  upscale: number(Submission.upscale, 0.25),
  variation_seed: number(VariationChoice.seed, 1, { low: 0 }),
  variation_strength: number(VariationChoice.strength, 0.05, { start: 0 }),
  priority: number(Submission.priority, 1),
  hires_scale: number(HiresChoice.scale, 0.05),
  // 0 is none of its own.
  hires_steps: number(HiresChoice.steps, 1, { low: 0, start: 0 }),
  hires_strength: number(HiresChoice.strength, 0.05),
  hires_upscaler: choiceOf(HiresChoice.upscaler),
  // Empty is the one of the first pass.
  hires_checkpoint: choice(""),
  strength: number(Submission.strength, 0.05, { start: 0.75 }),
  resize_mode: choiceOf(Submission.resize_mode),
  mask_blur: number(InpaintChoice.mask_blur, 1),
  mask_fill: choiceOf(InpaintChoice.mask_fill),
  only_masked: { kind: "flag", start: InpaintChoice.only_masked.default },
  padding: number(InpaintChoice.padding, 4),
};

const SEEDS = Submission.seed.maximum + 1;

// Fields that the farm takes inside of others.
const INSIDE = {
  variation: ["variation_seed", "variation_strength"],
  hires: ["hires_scale", "hires_steps", "hires_strength", "hires_upscaler", "hires_checkpoint"],
  inpaint: ["mask_blur", "mask_fill", "only_masked", "padding"],
};
const PATHS = Object.fromEntries(
  Object.entries(INSIDE).flatMap(([outer, names]) =>
    names.map((name) => [name, `${outer}.${name.replace(`${outer}_`, "")}`]),
  ),
);

/** What the farm calls a field of the form, with dots where it lies inside another: `hires.scale`. */
export const pathOf = (name) => PATHS[name] ?? name;

/** The field of the form that the farm calls so; the path itself for what no form has. */
export const fieldOf = (path) => Object.keys(PATHS).find((name) => PATHS[name] === path) ?? path;

export const TEXTS = ["prompt", "negative_prompt"];
export const FLAGS = ["hires"];

/** What people are taught to start with. */
export const PRESETS = {
  fast: { steps: 20, guidance_scale: 7, sampler: "euler_a", schedule: "", width: 512, height: 512 },
  quality: { steps: 30, guidance_scale: 10, sampler: "dpmpp_2m", schedule: "karras", width: 768, height: 768 },
  artistic: { steps: 25, guidance_scale: 9, sampler: "ddim", schedule: "", width: 512, height: 768 },
};

export const RATIOS = [[1, 1], [2, 3], [3, 2], [3, 4], [4, 3], [9, 16], [16, 9]];

/** The sides of a ratio with about as many pixels as now. */
export function sides([across, down], width, height) {
  const area = width * height;
  return [tidied("width", Math.sqrt((area * across) / down)), tidied("height", Math.sqrt((area * down) / across))];
}

/** A form as it is first shown. */
export function fresh() {
  const values = { prompt: "", negative_prompt: "", hires: false, loras: [] };
  for (const [name, field] of Object.entries(FIELDS)) values[name] = field.start;
  return values;
}

/** The value of a number field within its range, on its step; null where the field may be empty and is. */
export function tidied(name, text) {
  const field = FIELDS[name];
  if (text === "" || text === null || text === undefined) return field.start === null ? null : field.start;
  const value = Number(text);
  if (!Number.isFinite(value)) return field.start;
  const stepped = field.step >= 1 ? Math.round(value / field.step) * field.step : value;
  return Math.min(field.high, Math.max(field.low, stepped));
}

/** The body of POST /v1/jobs. `pictures` holds the init image and mask in base64, if there are any. */
export function submission(values, pictures = {}) {
  const body = {
    prompt: values.prompt,
    negative_prompt: values.negative_prompt,
    steps: values.steps,
    guidance_scale: values.guidance_scale,
    sampler: values.sampler,
    width: values.width,
    height: values.height,
    num_images: values.num_images,
    clip_skip: values.clip_skip,
    upscale: values.upscale,
  };
  for (const name of ["checkpoint", "schedule", "vae"]) if (values[name]) body[name] = values[name];
  if (values.seed !== null) body.seed = values.seed;
  if (values.priority) body.priority = values.priority;
  if (values.loras.length) body.loras = values.loras.map(({ name, weight }) => ({ name, weight }));
  if (values.variation_strength > 0) {
    body.variation = { strength: values.variation_strength };
    if (values.variation_seed !== null) body.variation.seed = values.variation_seed;
  }
  if (pictures.init) return { ...body, ...fromPicture(values, pictures) };
  return values.hires ? { ...body, hires: hires(values) } : body;
}

function hires(values) {
  const found = { scale: values.hires_scale, strength: values.hires_strength, upscaler: values.hires_upscaler };
  if (values.hires_steps) found.steps = values.hires_steps;
  if (values.hires_checkpoint) found.checkpoint = values.hires_checkpoint;
  return found;
}

function fromPicture(values, pictures) {
  const found = { init_image: pictures.init, strength: values.strength, resize_mode: values.resize_mode };
  if (!pictures.mask) return found;
  const { mask_blur, mask_fill, only_masked, padding } = values;
  return { ...found, mask_image: pictures.mask, inpaint: { mask_blur, mask_fill, only_masked, padding } };
}

/** Form values from the parameters of a job, or of a PNG of the farm. */
export function fromParams(params) {
  const values = fresh();
  for (const name of [...TEXTS, ...Object.keys(FIELDS)]) {
    if (params[name] !== undefined && params[name] !== null) values[name] = params[name];
  }
  if (params.loras) {
    // The tags of the prompt are among them, and would count once more.
    values.prompt = untagged(values.prompt);
    values.loras = params.loras.map(({ name, weight }) => ({ name, weight }));
  }
  if (params.variation) {
    values.variation_seed = params.variation.seed;
    values.variation_strength = params.variation.strength;
  }
  if (params.hires) {
    values.hires = true;
    // Up, for the farm rounds the sides that come of it down.
    values.hires_scale = Math.ceil((1e4 * params.hires.width) / params.width - 1e-6) / 1e4;
    values.hires_steps = params.hires.steps;
    values.hires_strength = params.hires.strength;
    values.hires_upscaler = params.hires.upscaler;
    values.hires_checkpoint = params.hires.checkpoint ?? "";
  }
  if (params.inpaint) Object.assign(values, pick(params.inpaint, INSIDE.inpaint));
  return values;
}

const OF_BOTH_PASSES = ["prompt", "negative_prompt", "guidance_scale", "sampler", "schedule"];

/** What of a job's parameters no form can hold, by the names that `words.create.unheld` has for it. */
export function unheld({ hires, loras = [], ...params }) {
  const own = OF_BOTH_PASSES.filter((name) => ![undefined, params[name]].includes(hires?.[name]));
  const isUneven = hires && hires.width * params.height !== hires.height * params.width;
  const isParted = loras.some((lora) => ![undefined, lora.weight].includes(lora.text_encoder_weight));
  return [...own.map((name) => `hires_${name}`), ...(isUneven ? ["hires_size"] : []), ...(isParted ? ["loras"] : [])];
}

/** The parameters of one picture of a job alone. */
export function alone(params, { index, seed }) {
  const { variation } = params;
  // Pictures of one job differ by the variation seed where there is one.
  const varied = variation && { ...variation, seed: (variation.seed + index) % SEEDS };
  return { ...params, seed, num_images: 1, variation: varied };
}

function pick(from, names) {
  return Object.fromEntries(names.filter((name) => name in from).map((name) => [name, from[name]]));
}

/** What of a form differs from a fresh one, as a query string; short enough for an address bar. */
export function toQuery(values) {
  const start = fresh();
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    if (name === "loras") value.forEach((lora) => query.append("lora", `${lora.name}:${lora.weight}`));
    else if (value !== start[name] && value !== null) query.set(name, String(value));
  }
  return query.toString();
}

/** The form that a query string stands for; what it does not know stays as it starts. */
export function fromQuery(text) {
  const query = new URLSearchParams(text);
  const values = fresh();
  for (const [name, value] of query) {
    if (name === "lora") {
      const colon = value.lastIndexOf(":");
      values.loras.push({ name: value.slice(0, colon), weight: Number(value.slice(colon + 1)) || 1 });
    } else if (TEXTS.includes(name)) values[name] = value;
    else if (FLAGS.includes(name) || FIELDS[name]?.kind === "flag") values[name] = value === "true";
    else if (FIELDS[name]?.kind === "number") values[name] = tidied(name, value);
    else if (FIELDS[name]) values[name] = value;
  }
  return values;
}
