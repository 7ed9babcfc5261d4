/** The choice of checkpoints: loaded ones first, those that no worker can load last, with the reason. */

import { words } from "./words.js";

const said = words.create;

/** Options for an answer of /v1/checkpoints, or for none. Without a default one of several must be chosen. */
export function checkpointChoices(found) {
  const known = found?.checkpoints ?? [];
  const loadable = known.filter((one) => !one.refused);
  const nearest = loadable.toSorted((one, other) => place(one) - place(other));
  const offered = nearest.map((one) => ({ value: one.name, label: label(one, loadable.length) }));
  const refused = known.filter((one) => one.refused).map(unloadable);
  const isOpen = found?.default || loadable.length < 2;
  const auto = found?.default && loadable.length > 1 ? said.autoIs(found.default) : said.auto;
  return [...(isOpen ? [{ value: "", label: auto }] : []), ...offered, ...refused];
}

/** 0 where a worker has it loaded, then in memory, then at all, then where none has it now. */
function place({ resident_workers: loaded, warm_workers: warm, ready_workers: ready }) {
  if (loaded) return 0;
  if (warm) return 1;
  return ready ? 2 : 3;
}

function label({ name, resident_workers: loaded }, of) {
  return loaded && of > 1 ? said.loaded(name) : name;
}

function unloadable({ name, refused }) {
  return { value: name, label: said.refused(name, refused), disabled: true };
}
