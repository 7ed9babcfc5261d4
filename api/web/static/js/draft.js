/** The picture and mask of this tab's form, kept until the form lets them go. Their settings stand in the address. */

import { uuid } from "./api.js";
import * as store from "./store.js";

const TAB = "farm.tab";
// Tabs that were closed with a picture in their form never come back for it.
const LEFT_MS = 7 * 24 * 3600 * 1000;

function tab() {
  const known = sessionStorage.getItem(TAB);
  if (known) return known;
  const id = uuid();
  sessionStorage.setItem(TAB, id);
  return id;
}

/** Keep what the form starts from. Returns whether it outlives a reload. */
export async function save(pictures) {
  return store.put("pictures", { id: tab(), at: Date.now(), ...pictures });
}

/** Let go of what the form started from: at once, for a reload may come before the browser has dropped it. */
export function forget() {
  const id = sessionStorage.getItem(TAB);
  sessionStorage.removeItem(TAB);
  if (id) store.drop("pictures", id);
}

/** What the form of this tab started from when it was last here; undefined for nothing. */
export async function restored() {
  for (const { id, at } of await store.all("pictures")) {
    if (Date.now() - at > LEFT_MS) await store.drop("pictures", id);
  }
  return store.get("pictures", tab());
}
