// Conversations in the browser's own database. Each has a version: a window that holds an old one writes a copy.

// Titles have a table of their own: the list of conversations is read often, their images and videos are large.

const NAME = "mmblocks", TABLE = "conversations", TITLES = "titles";
const channel = "BroadcastChannel" in self ? new BroadcastChannel(NAME) : null;

let opened = null;

function open() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 2);
    request.onupgradeneeded = ({ oldVersion }) => {
      const titles = request.result.createObjectStore(TITLES, { keyPath: "id" });
      if (oldVersion === 0) request.result.createObjectStore(TABLE, { keyPath: "id" });
      else copyTitles(request.transaction.objectStore(TABLE), titles);
    };
    request.onblocked = () => reject(new Error("another window holds an earlier version of it; reload that one"));
    request.onsuccess = () => {
      request.result.onversionchange = () => { request.result.close(); opened = null; };
      resolve(request.result);
    };
    request.onerror = () => reject(request.error);
  });
  opened.catch(() => { opened = null; }); // to be tried again
  return opened;
}

function copyTitles(table, titles) {
  const request = table.openCursor();
  request.onsuccess = () => {
    const cursor = request.result;
    if (!cursor) return;
    titles.put(makeEntry(cursor.value));
    cursor.continue();
  };
}

function makeEntry({ id, title, changed }) { return { id, title, changed }; }

async function run(mode, work) {
  const database = await open();
  return new Promise((resolve, reject) => {
    const transaction = database.transaction([TABLE, TITLES], mode);
    let result;
    work(transaction.objectStore(TABLE), transaction.objectStore(TITLES), (value) => { result = value; });
    transaction.oncomplete = () => resolve(result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error ?? new Error("the browser has ended the writing"));
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
  const all = await run("readonly", (table, titles, give) => {
    const request = titles.getAll();
    request.onsuccess = () => give(request.result);
  });
  return all.sort((a, b) => b.changed - a.changed);
}

export async function read(id) {
  return run("readonly", (table, titles, give) => {
    const request = table.get(id);
    request.onsuccess = () => give(request.result);
  });
}

let lastWrite = Promise.resolve();

/** Write a conversation; under a new id where another window has changed it since it was read. */
export function write(conversation) {
  const written = lastWrite.then(() => writeNext(conversation)); // one by one: each goes on from the version of the last
  lastWrite = written.catch(() => {});
  return written;
}

async function writeNext(conversation) {
  const next = { ...conversation, version: conversation.version + 1, changed: Date.now() };
  await run("readwrite", (table, titles) => {
    const request = table.get(conversation.id);
    request.onsuccess = () => {
      const stored = request.result;
      if (stored ? stored.version !== conversation.version : conversation.version > 0) {
        next.id = makeId();
        next.title = `${conversation.title} (copy)`;
      }
      table.put(next);
      titles.put(makeEntry(next));
    };
  });
  // Only now: of what could not be stored, the browser still has the version that was.
  if (next.id !== conversation.id) conversation.title = next.title;
  Object.assign(conversation, { id: next.id, version: next.version, changed: next.changed });
  channel?.postMessage(conversation.id);
}

export async function remove(id) {
  await lastWrite;
  await run("readwrite", (table, titles) => { table.delete(id); titles.delete(id); });
  channel?.postMessage(id);
}

/** Call back when another window has written or removed a conversation. */
export function watch(callback) {
  if (channel) channel.onmessage = (event) => callback(event.data);
}
