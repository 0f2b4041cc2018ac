// Requests to the server that this page came from.

export class ServerError extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

let key = sessionStorage.getItem("key") ?? "";

export function getKey() { return key; }

export function setKey(given) {
  key = given.trim();
  sessionStorage.setItem("key", key);
}

async function send(path, body, signal) {
  const headers = { ...(body ? { "Content-Type": "application/json" } : {}), ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (cause) {
    if (cause.name === "AbortError") throw cause;
    throw new ServerError(0, "The server cannot be reached. Is it still running?");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  const message = told?.error?.message ?? `The server answered with status ${response.status}.`;
  throw new ServerError(response.status, message, response.headers.get("Retry-After"));
}

export async function readModel() { return (await send("/api/model")).json(); }

export async function plan(messages, signal) { return (await send("/api/plan", { messages }, signal)).json(); }

/** Pieces {text}, {reason} and {usage} of an answer, as they arrive. */
export async function* answer(body, signal) {
  const asked = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await send("/v1/chat/completions", asked, signal);
  for await (const data of readEvents(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(500, chunk.error.message ?? String(chunk.error));
    if (chunk.usage) yield { usage: chunk.usage };
    for (const choice of chunk.choices ?? []) {
      if (choice.delta?.content) yield { text: choice.delta.content };
      if (choice.finish_reason) yield { reason: choice.finish_reason };
    }
  }
  throw new ServerError(0, "The connection was lost before the answer was complete.");
}

async function* readEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      let piece;
      try {
        piece = await reader.read();
      } catch (cause) {
        if (cause.name === "AbortError") throw cause;
        throw new ServerError(0, "The connection was lost before the answer was complete.");
      }
      if (piece.done) return;
      const lines = (rest + piece.value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6).trim();
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
