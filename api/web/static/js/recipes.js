/** A job's parameters as programs take them along: JSON, curl, Python. Pure. */

import { untagged } from "./prompts.js";

const PICTURES = ["init_image", "mask_image"];

/** The body of POST /v1/jobs that makes the same pictures again. What the job started from is named, not sent. */
export function body(params, id) {
  const found = { ...params, prompt: untagged(params.prompt), ...inputPaths(params, id) };
  delete found.kind;
  if (!params.init_image) {
    delete found.strength;
    delete found.resize_mode;
  }
  if (params.hires) found.hires = secondPass(params);
  const isSaid = ([, value]) => value !== null && !(Array.isArray(value) && value.length === 0);
  return Object.fromEntries(Object.entries(found).filter(isSaid));
}

/** Where the farm has the pictures that a job started from, by the fields that name them. */
export function inputPaths(params, id) {
  const named = PICTURES.filter((name) => params[name]);
  return Object.fromEntries(named.map((name) => [name, `/v1/jobs/${id}/inputs/${name}`]));
}

/** A second pass takes the LoRAs of the first; tags of its own say what differs. */
function secondPass({ hires, loras }) {
  const { loras: own, ...found } = hires;
  return { ...found, prompt: untagged(hires.prompt) + difference(own, loras) };
}

function difference(own, others) {
  const names = [...new Set([...own, ...others].map(({ name }) => name))];
  const weights = (list, name) => {
    const lora = list.find((one) => one.name === name);
    return [lora?.text_encoder_weight ?? 0, lora?.weight ?? 0];
  };
  const tags = names.map((name) => {
    const [text, unet] = weights(own, name).map((weight, index) => rounded(weight - weights(others, name)[index]));
    return text || unet ? ` <lora:${name}:${text}:${unet}>` : "";
  });
  return tags.join("");
}

/** Without what subtraction leaves behind the last digit. */
function rounded(number) {
  return Math.round(number * 1e9) / 1e9;
}

/** A command line. */
export function asCurl(params, id, origin) {
  const json = JSON.stringify(body(params, id)).replaceAll("'", String.raw`'\''`);
  const headers = `-H 'Content-Type: application/json' -H "Authorization: Bearer $FARM_API_KEY"`;
  return `curl -X POST '${origin}/v1/jobs' ${headers} -d '${json}'`;
}

/** A program. JSON's literals become Python's. */
export function asPython(params, id, origin) {
  return [
    "import os",
    "from api.client import Farm",
    "",
    `with Farm(${JSON.stringify(origin)}, os.environ.get("FARM_API_KEY")) as farm:`,
    `    job = farm.submit(**${python(body(params, id))})`,
    "    picture = farm.image(farm.wait(job.id), 0)",
    'open("picture.png", "wb").write(picture)',
  ].join("\n");
}

function python(value) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${python(one)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}
