// Conversations in the browser's own database. Each has a version: a window that holds an old one writes a copy.

const NAME = "mmblocks", TABLE = "conversations";
const channel = "BroadcastChannel" in self ? new BroadcastChannel(NAME) : null;

let opened = null;

function open() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(TABLE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

async function run(mode, work) {
  const database = await open();
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(TABLE, mode);
    let result;
    work(transaction.objectStore(TABLE), (value) => { result = value; });
    transaction.oncomplete = () => resolve(result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}

/** A name that no other conversation has; crypto.randomUUID is for secure addresses only. */
function makeId() {
  return Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(36)).join("-");
}

/** A conversation without messages, which is stored when it has some. */
export function make() {
  return { id: makeId(), title: "", version: 0, changed: Date.now(), messages: [] };
}

/** Title, id and time of all conversations, the latest first. */
export async function list() {
  const all = await run("readonly", (table, give) => {
    const request = table.getAll();
    request.onsuccess = () => give(request.result);
  });
  return all.map(({ id, title, changed }) => ({ id, title, changed })).sort((a, b) => b.changed - a.changed);
}

export async function read(id) {
  return run("readonly", (table, give) => {
    const request = table.get(id);
    request.onsuccess = () => give(request.result);
  });
}

/** Write a conversation; under a new id where another window has changed it since it was read. */
export async function write(conversation) {
  const own = conversation.id;
  await run("readwrite", (table) => {
    const request = table.get(own);
    request.onsuccess = () => {
      const stored = request.result;
      if (stored ? stored.version !== conversation.version : conversation.version > 0) {
        conversation.id = makeId();
        conversation.title = `${conversation.title} (copy)`;
      }
      conversation.version += 1;
      conversation.changed = Date.now();
      table.put(structuredClone(conversation));
    };
  });
  channel?.postMessage(conversation.id);
}

export async function remove(id) {
  await run("readwrite", (table) => table.delete(id));
  channel?.postMessage(id);
}

/** Call back when another window has written or removed a conversation. */
export function watch(callback) {
  if (channel) channel.onmessage = (event) => callback(event.data);
}
