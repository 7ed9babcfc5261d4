/** A job's parameters as programs take them along: JSON, curl, Python. Pure. */

const LEFT_OUT = new Set(["kind", "init_image", "mask_image", "inpaint"]);

/** The body of POST /v1/jobs that makes the same picture again, as far as text can say it. */
export function body(params, seed = params.seed) {
  const kept = Object.entries({ ...params, seed, num_images: 1 }).filter(
    ([name, value]) => !LEFT_OUT.has(name) && value !== null && !(Array.isArray(value) && value.length === 0),
  );
  const found = Object.fromEntries(kept);
  if (!params.init_image) {
    delete found.strength;
    delete found.resize_mode;
  }
  if (params.hires) {
    found.hires = { ...params.hires };
    delete found.hires.loras; // they follow from the job's own
  }
  return found;
}

/** A command line. */
export function asCurl(params, seed, origin) {
  const json = JSON.stringify(body(params, seed)).replaceAll("'", String.raw`'\''`);
  const headers = `-H 'Content-Type: application/json' -H "Authorization: Bearer $FARM_API_KEY"`;
  return `curl -X POST '${origin}/v1/jobs' ${headers} -d '${json}'`;
}

/** A program. JSON's literals become Python's. */
export function asPython(params, seed, origin) {
  return [
    "import os",
    "from api.client import Farm",
    "",
    `with Farm(${JSON.stringify(origin)}, os.environ.get("FARM_API_KEY")) as farm:`,
    `    job = farm.submit(**${python(body(params, seed))})`,
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
