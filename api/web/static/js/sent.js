/** What is on its way from another page to the form: a picture to start from, or a job to be used again. */

let waiting = {};

/** Open the form with a picture to start from. */
export function send(file) {
  open({ file });
}

/** Open the form with the settings and pictures of a job. */
export function reuse(job, params) {
  open({ job, params });
}

/** Take what was sent, once: { file } or { job, params }, or {}. */
export function taken() {
  const found = waiting;
  waiting = {};
  return found;
}

function open(sent) {
  waiting = sent;
  location.hash = "#create";
}
