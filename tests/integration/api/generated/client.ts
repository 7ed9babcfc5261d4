// A program on the types that openapi-typescript makes of the farm's document: `client.js URL`.
import createClient from "openapi-fetch";
import type { components, paths } from "./schema";

declare const process: { argv: string[] };

const farm = createClient<paths>({ baseUrl: process.argv[2] });

function check(holds: unknown, what: unknown): asserts holds {
  if (!holds) throw new Error(JSON.stringify(what));
}

const submitted = await farm.POST("/v1/jobs", { body: { prompt: "a red circle", width: 64, height: 64, steps: 2 } });
check(submitted.data, submitted.error);
let job: components["schemas"]["Job"] = submitted.data;
while (job.state !== "succeeded") {
  check(job.state === "queued" || job.state === "running", job);
  const shown = await farm.GET("/v1/jobs/{job_id}", {
    params: { path: { job_id: job.id }, header: { prefer: "wait=60" } },
  });
  check(shown.data, shown.error);
  job = shown.data;
}
const listed = await farm.GET("/v1/jobs");
check(listed.data?.jobs.some((one) => one.id === job.id), listed.error);
const image = await farm.GET("/v1/jobs/{job_id}/images/{index}", {
  params: { path: { job_id: job.id, index: 0 } },
  parseAs: "arrayBuffer",
});
check(new TextDecoder().decode(image.data).includes("PNG"), image.error);

const refused = await farm.POST("/v1/jobs", { body: { prompt: "x", steps: 0 } });
check(refused.error?.code === "invalid_request", refused);
