// The page: one conversation at a time, its questions and answers, and the list of all that are kept.

import * as api from "./api.js";
import * as store from "./store.js";
import { count, formatText, make, makeMessage, replaceChildren } from "./messages.js";

const find = (id) => document.getElementById(id);
const DEFAULTS = { system: "", temperature: "0", top_p: "1", max_tokens: "512", seed: "", theme: "" };
// plans: of each visual of the open conversation, by its part
const state = { model: null, conversation: store.make(), attachments: [], writing: null, plans: new Map(), follows: true };
let settings = { ...DEFAULTS, ...readSettings() };

function readSettings() {
  try {
    return JSON.parse(localStorage.getItem("settings") ?? "{}");
  } catch {
    return {};
  }
}

// Requests ---------------------------------------------------------------------------------------------------------

function toParts(message) {
  return message.parts.map((part) => {
    if (part.type === "text") return { type: "text", text: part.text };
    const name = part.type === "image" ? "image_url" : "video_url";
    return { type: name, [name]: { url: part.url } };
  });
}

function toMessages(messages) {
  const system = settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
  const said = messages.filter((message) => message.role === "user" || textOf(message));
  return [...system, ...said.map((message) => ({
    role: message.role, content: message.role === "user" ? toParts(message) : textOf(message),
  }))];
}

function textOf(message) { return message.parts.filter((part) => part.type === "text").map((part) => part.text).join(""); }

function makeBody(messages) {
  const most = Math.min(Number(settings.max_tokens) || 512, state.model.limits?.answer_tokens ?? Infinity);
  return {
    model: state.model.name, messages: toMessages(messages), temperature: Number(settings.temperature) || 0,
    top_p: Number(settings.top_p) || 1, max_tokens: most, ...(settings.seed === "" ? {} : { seed: Number(settings.seed) }),
  };
}

/** Answer the last question of a conversation, which stays the same object if another one is opened meanwhile. */
async function writeAnswer(conversation) {
  const answer = { role: "assistant", parts: [{ type: "text", text: "" }], note: "", error: "" };
  const control = new AbortController();
  const asked = [...conversation.messages];
  conversation.messages.push(answer);
  state.writing = { conversation, answer, control };
  show();
  const began = performance.now();
  let reason = "", usage = null;
  try {
    if (!state.model) await readModel();
    for await (const piece of api.answer(makeBody(asked), control.signal)) {
      if (piece.text) { answer.parts[0].text += piece.text; showPiece(answer); }
      if (piece.reason) reason = piece.reason;
      if (piece.usage) usage = piece.usage;
    }
  } catch (cause) {
    if (cause.name === "AbortError") reason = "stopped";
    else {
      answer.error = explain(cause);
      if (cause.status === 401) openSettings("key");
    }
  }
  answer.note = describeAnswer(reason, usage, (performance.now() - began) / 1000);
  state.writing = null;
  find("live").textContent = answer.error || `Answer: ${textOf(answer) || "nothing"}`;
  await save(conversation);
  show();
}

function explain(cause) {
  if (cause.status === 401) return `${cause.message} Write the API key in the settings, then ask again.`;
  if (cause.status === 429) return `${cause.message}${cause.retryAfter ? ` Try again in ${count(Number(cause.retryAfter), "second")}.` : ""}`;
  return cause.message || String(cause);
}

function describeAnswer(reason, usage, seconds) {
  const tokens = usage ? `${usage.prompt_tokens} + ${count(usage.completion_tokens, "token")}` : "";
  const ended = { length: "ended at the longest answer", stopped: "stopped" }[reason] ?? "";
  return [tokens, `${seconds.toFixed(1)} s`, ended].filter(Boolean).join(" · ");
}

/** What each visual of the conversation costs; without it the page still works. */
async function readPlans(conversation) {
  const parts = listVisuals(conversation);
  if (!parts.length || areEqual([...state.plans.keys()], parts)) return;
  const last = conversation.messages.findLastIndex((message) => message.role === "user");
  try {
    const { visuals } = await api.plan(toMessages(conversation.messages.slice(0, last + 1)));
    if (conversation !== state.conversation || !areEqual(listVisuals(conversation), parts)) return;
    state.plans = new Map(parts.map((part, i) => [part, visuals[i]]));
    show();
  } catch { /* the answer says what is wrong */ }
}

function listVisuals(conversation) { return conversation.messages.flatMap((m) => m.parts).filter((part) => part.type !== "text"); }

function areEqual(some, others) { return some.length === others.length && some.every((one, i) => one === others[i]); }

// What is shown ----------------------------------------------------------------------------------------------------

function show() {
  const log = find("log"), { messages } = state.conversation;
  const shown = messages.map((message, i) => {
    const plans = message.parts.filter((part) => part.type !== "text").map((part) => state.plans.get(part));
    const element = makeMessage(message, plans, listActions(message, i));
    if (message === state.writing?.answer) element.classList.add("writing");
    return element;
  });
  if (!shown.length) shown.push(makeWelcome());
  replaceChildren(log, shown, log);
  scrollToEnd();
  if (!state.writing && document.activeElement === find("stop")) log.focus();
  find("stop").hidden = !state.writing;
  find("send").hidden = Boolean(state.writing);
  showConversations();
}

function showPiece(answer) {
  if (state.writing?.conversation !== state.conversation) return;
  find("log").querySelector(".writing .body")?.replaceChildren(...formatText(textOf(answer)));
  scrollToEnd();
}

/** Follow the answer, unless the reader has scrolled back. */
function scrollToEnd() {
  if (state.follows) find("log").scrollTop = find("log").scrollHeight;
}

function makeWelcome() {
  return make("div", { className: "welcome" }, make("h2", {}, "Ask about images and videos"),
    make("p", {}, "Add them below, drop them anywhere, or paste them."));
}

function listActions(message, i) {
  if (state.writing) return [];
  const isLast = i === state.conversation.messages.length - 1;
  const actions = [{ label: "Copy", key: `copy ${i}`, run: (button) => copy(textOf(message), button) }];
  if (message.role === "assistant" && isLast) actions.push({ label: message.error ? "Try again" : "Regenerate", key: `answer ${i}`, run: regenerate });
  if (message.role === "user" && isLast) actions.push({ label: "Answer", key: `answer ${i + 1}`, run: regenerate });
  if (message.role === "user" && i >= state.conversation.messages.length - 2) actions.push({ label: "Edit", key: `edit ${i}`, run: () => edit(i) });
  return textOf(message) || message.role === "user" || isLast ? actions : [];
}

async function showConversations() {
  const listed = await store.list();
  const rows = listed.map(({ id, title }) => {
    const open = make("button", { type: "button", className: "open", title, "data-key": `open ${id}` }, title || "Untitled");
    open.onclick = () => openConversation(id);
    if (id === state.conversation.id) open.setAttribute("aria-current", "true");
    const rename = make("button", { type: "button", className: "small", "aria-label": `Rename ${title}`, "data-key": `rename ${id}` }, "Rename");
    rename.onclick = () => renameConversation(id);
    const remove = make("button", { type: "button", className: "small", "aria-label": `Delete ${title}` }, "Delete");
    remove.onclick = () => removeConversation(id);
    return make("li", { "data-open": String(id === state.conversation.id) }, open, rename, remove);
  });
  replaceChildren(find("conversations"), rows, find("new"));
}

function showAttachments() {
  find("attachments").replaceChildren(...state.attachments.map((part, i) => {
    const small = part.type === "image" ? make("img", { src: part.url, alt: "" }) : make("video", { src: part.url, muted: true });
    const remove = make("button", { type: "button", "aria-label": `Remove ${part.name}` }, "×");
    remove.onclick = () => { state.attachments.splice(i, 1); showAttachments(); find("question").focus(); };
    return make("li", {}, small, make("span", {}, part.name), remove);
  }));
}

function notify(text) {
  find("notice").textContent = text;
  find("notice").hidden = !text;
}

// What the user does -----------------------------------------------------------------------------------------------

async function send() {
  const text = find("question").value.trim();
  if (!text && !state.attachments.length) return;
  if (state.writing) { notify("An answer is being written. Stop it, or wait for its end."); return; }
  notify("");
  const conversation = state.conversation;
  const parts = [...state.attachments, { type: "text", text }];
  conversation.messages.push({ role: "user", parts });
  conversation.title ||= (text || parts[0].name).slice(0, 60);
  state.attachments = [];
  find("question").value = "";
  fitQuestion();
  showAttachments();
  state.follows = true;
  await save(conversation);
  const answered = writeAnswer(conversation);
  readPlans(conversation);
  await answered;
}

async function regenerate() {
  const { conversation } = state;
  if (state.writing) return;
  if (conversation.messages.at(-1).role === "assistant") conversation.messages.pop();
  await writeAnswer(conversation);
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // browsers have no clipboard for pages of http from other machines
    const area = make("textarea", { value: text, className: "hidden" });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.textContent = find("live").textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}

async function edit(i) {
  const { conversation } = state;
  const [message] = conversation.messages.splice(i);
  state.attachments = message.parts.filter((part) => part.type !== "text");
  find("question").value = textOf(message);
  fitQuestion();
  showAttachments();
  show();
  readPlans(conversation);
  find("question").focus();
}

/** The conversation of this id: the one in this window, with what was written last, or else the stored one. */
async function findConversation(id) {
  return [state.conversation, state.writing?.conversation].find((held) => held?.id === id) ?? store.read(id);
}

async function save(conversation) {
  if (conversation.isRemoved) return;
  try {
    await store.write(conversation);
  } catch (cause) {
    notify(`This conversation cannot be kept in the browser: ${cause?.message ?? cause}.`);
  }
}

async function openConversation(id) {
  state.conversation = (await findConversation(id)) ?? store.make();
  state.follows = true;
  openSide(false);
  show();
  readPlans(state.conversation);
}

function beginConversation() {
  state.conversation = store.make();
  openSide(false);
  show();
  find("question").focus();
}

async function renameConversation(id) {
  const renamed = await findConversation(id);
  const title = renamed && prompt("Name of the conversation", renamed.title);
  if (title?.trim()) {
    renamed.title = title.trim().slice(0, 100);
    await save(renamed);
  }
  showConversations();
}

async function removeConversation(id) {
  if (!confirm("Delete this conversation?")) return;
  for (const held of [state.conversation, state.writing?.conversation]) if (held?.id === id) held.isRemoved = true;
  if (state.writing?.conversation.id === id) state.writing.control.abort();
  await store.remove(id);
  if (id === state.conversation.id) beginConversation();
  else showConversations();
}

async function addFiles(files) {
  notify("");
  const limit = state.model?.limits?.body_bytes;
  for (const file of files) {
    const type = file.type.split("/")[0];
    if (type !== "image" && type !== "video") { notify(`${file.name} is no image and no video.`); continue; }
    if (limit && file.size * 1.4 > limit) { notify(`${file.name} is larger than the server takes.`); continue; }
    const url = await new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.onerror = () => reject(reader.error);
      reader.readAsDataURL(file);
    });
    state.attachments.push({ type, name: file.name || `pasted ${type}`, url });
  }
  showAttachments();
}

/** Open or close the list of conversations on a narrow screen; on a wide one it is always there. */
function openSide(isOpen) {
  document.body.classList.toggle("side-open", isOpen);
  find("toggle-side").setAttribute("aria-expanded", String(isOpen));
}

function fitQuestion() {
  const question = find("question");
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight + 2}px`;
}

// Settings and model -----------------------------------------------------------------------------------------------

function openSettings(focus) {
  const form = find("settings-form");
  for (const name of Object.keys(DEFAULTS)) form.elements[name].value = settings[name];
  form.elements.key.value = api.getKey();
  find("settings").showModal();
  if (focus) form.elements[focus].focus();
}

function takeSettings() {
  const form = find("settings-form");
  for (const name of Object.keys(DEFAULTS)) settings[name] = form.elements[name].value;
  localStorage.setItem("settings", JSON.stringify(settings));
  api.setKey(form.elements.key.value);
  applyTheme();
  if (!state.model) readModel().catch((cause) => notify(explain(cause)));
}

function applyTheme() {
  if (settings.theme) document.documentElement.dataset.theme = settings.theme;
  else delete document.documentElement.dataset.theme;
}

async function readModel() {
  state.model = await api.readModel();
  const { name, parts, max_tokens: most, needs_key: needsKey } = state.model;
  find("model-name").textContent = name;
  document.title = `${name} · mmblocks`;
  const rows = [...Object.entries(parts), ...(most ? [["longest conversation", count(most, "token")]] : [])];
  if (needsKey && !api.getKey()) openSettings("key");
  find("parts").replaceChildren(...rows.flatMap(([what, value]) => [make("dt", {}, what), make("dd", {}, String(value))]));
}

// Events -----------------------------------------------------------------------------------------------------------

find("composer").onsubmit = (event) => { event.preventDefault(); send(); };
find("question").oninput = fitQuestion;
find("question").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
};
find("log").onscroll = () => {
  const log = find("log");
  state.follows = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
};
for (const kind of ["load", "loadedmetadata"]) find("log").addEventListener(kind, scrollToEnd, true); // visuals have their size now
find("stop").onclick = () => state.writing?.control.abort();
find("new").onclick = beginConversation;
find("attach").onclick = () => find("files").click();
find("files").onchange = async (event) => { await addFiles(event.target.files); event.target.value = ""; find("question").focus(); };
find("show-settings").onclick = () => openSettings();
find("settings").onclose = takeSettings;
find("show-model").onclick = () => find("model").showModal();
find("toggle-side").onclick = () => { openSide(true); find("close-side").focus(); };
find("close-side").onclick = () => { openSide(false); find("toggle-side").focus(); };
find("main").addEventListener("pointerdown", (event) => { if (!find("toggle-side").contains(event.target)) openSide(false); });
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || document.querySelector("dialog[open]")) return;
  if (document.body.classList.contains("side-open")) find("close-side").click();
  else state.writing?.control.abort();
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData?.files.length) { event.preventDefault(); addFiles(event.clipboardData.files); }
});
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return; // text is dropped as everywhere
    event.preventDefault();
    document.body.classList.add("dropping");
  });
}
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
document.addEventListener("drop", (event) => {
  document.body.classList.remove("dropping");
  if (!event.dataTransfer?.files.length) return;
  event.preventDefault();
  addFiles(event.dataTransfer.files);
});
store.watch(async (id) => {
  if (id === state.conversation.id && !state.writing) {
    const stored = await store.read(id);
    if (stored && stored.version > state.conversation.version) { state.conversation = stored; show(); readPlans(stored); return; }
  }
  showConversations();
});

applyTheme();
show();
readModel().catch((cause) => { notify(explain(cause)); if (cause.status === 401) openSettings("key"); });
find("question").focus();
