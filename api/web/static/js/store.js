/** What this browser keeps beyond a reload: IndexedDB, or the memory of this page where there is none.

Private windows and full disks refuse it; then `put` says that the record goes with the page.
*/

const NAME = "farm";
const STORES = ["pictures", "submissions"];
const memory = Object.fromEntries(STORES.map((name) => [name, new Map()]));
let opening = null;

function database() {
  opening ??= new Promise((done, fail) => {
    const asked = indexedDB.open(NAME, 1);
    asked.onupgradeneeded = () => STORES.forEach((name) => asked.result.createObjectStore(name, { keyPath: "id" }));
    asked.onsuccess = () => done(asked.result);
    asked.onerror = () => fail(asked.error);
  });
  return opening;
}

async function run(store, mode, act) {
  const transaction = (await database()).transaction(store, mode);
  const asked = act(transaction.objectStore(store));
  return new Promise((done, fail) => {
    transaction.oncomplete = () => done(asked.result);
    transaction.onabort = () => fail(transaction.error);
  });
}

/** Keep a record under its `id`. Returns whether it outlives this page. */
export async function put(store, record) {
  try {
    await run(store, "readwrite", (kept) => kept.put(record));
    memory[store].delete(record.id);
    return true;
  } catch {
    memory[store].set(record.id, record);
    return false;
  }
}

/** The record of an id; undefined for none. */
export async function get(store, id) {
  return memory[store].get(id) ?? run(store, "readonly", (kept) => kept.get(id)).catch(() => undefined);
}

/** Every record. */
export async function all(store) {
  const kept = await run(store, "readonly", (one) => one.getAll()).catch(() => []);
  return [...kept, ...memory[store].values()];
}

/** Forget a record. */
export async function drop(store, id) {
  memory[store].delete(id);
  await run(store, "readwrite", (kept) => kept.delete(id)).catch(() => null);
}
