// Messages as elements. What a model or a user wrote is always inserted as text.

export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("data-") || name.startsWith("aria-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Paragraphs, and blocks of code between lines of three backticks. */
export function formatText(text) {
  const parts = [];
  text.split(/^```[^\n]*\n?/m).forEach((block, i) => {
    if (i % 2) parts.push(make("pre", {}, make("code", {}, block.replace(/\n$/, ""))));
    else parts.push(...block.split(/\n{2,}/).filter((p) => p.trim()).map((p) => make("p", {}, p.replace(/^\n+|\n+$/g, ""))));
  });
  return parts;
}

/** Show other children in an element; the focus stays on the one with the same `data-key`, or else goes to `fallback`. */
export function replaceChildren(parent, children, fallback) {
  const active = document.activeElement, isInside = active !== parent && parent.contains(active);
  parent.replaceChildren(...children);
  if (!isInside) return;
  const key = active.dataset.key;
  const next = active.isConnected ? active : key && [...parent.querySelectorAll("[data-key]")].find((e) => e.dataset.key === key);
  (next || fallback).focus({ preventScroll: true });
}

const made = new WeakMap(); // elements of visuals, so that what is shown again keeps its tiles and its place in a video

function findVisual(part, planned) {
  const known = made.get(part), plan = JSON.stringify(planned);
  if (known && known.plan === plan) return known.element;
  const shown = known?.shown ?? makeMedium(part);
  const areTilesShown = known?.element.querySelector("svg")?.hasAttribute("hidden") === false;
  const element = makeVisual(part, planned, shown, areTilesShown);
  made.set(part, { plan, shown, element });
  return element;
}

function makeMedium(part) {
  return part.type === "image"
    ? make("img", { src: part.url, alt: part.name })
    : make("video", { src: part.url, controls: true, muted: true, "aria-label": part.name });
}

/** An image or a video; with a plan also what it costs and its tiles. */
function makeVisual(part, planned, shown, areTilesShown) {
  const picture = make("div", { className: "picture" }, shown);
  const caption = make("figcaption", {}, make("span", {}, describe(part, planned)));
  if (planned && part.type === "image" && planned.views.length) {
    const tiles = drawTiles(planned);
    picture.append(tiles);
    const button = make("button", { type: "button" });
    const showTiles = (isShown) => {
      tiles.toggleAttribute("hidden", !isShown);
      button.textContent = isShown ? "Hide tiles" : "Show tiles";
    };
    button.onclick = () => showTiles(tiles.hasAttribute("hidden"));
    showTiles(areTilesShown);
    caption.append(button);
  }
  return make("figure", {}, picture, caption);
}

function describe(part, planned) {
  if (!planned) return part.name;
  const views = new Set(planned.views.map((view) => view.frame));
  const seen = part.type === "image" ? count(planned.views.length, "view") : count(views.size, "frame");
  return `${count(planned.tokens, "token")}, ${seen}`;
}

export function count(number, what) { return `${number} ${what}${number === 1 ? "" : "s"}`; }

function drawTiles(planned) {
  const [height, width] = planned.size, space = "http://www.w3.org/2000/svg";
  const drawing = document.createElementNS(space, "svg");
  drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
  drawing.setAttribute("preserveAspectRatio", "none");
  drawing.setAttribute("role", "img");
  drawing.setAttribute("aria-label", `${count(planned.views.length, "view")} of ${width} by ${height} pixels`);
  for (const { box: [top, left, boxHeight, boxWidth] } of planned.views) {
    const rect = document.createElementNS(space, "rect");
    const isWhole = boxWidth >= width && boxHeight >= height;
    for (const [name, value] of Object.entries({ x: left, y: top, width: boxWidth, height: boxHeight })) rect.setAttribute(name, value);
    if (isWhole) rect.setAttribute("class", "whole");
    drawing.append(rect);
  }
  return drawing;
}

/** A message of the user or an answer. actions: buttons {label, key, run}. */
export function makeMessage(message, plans, actions) {
  const visuals = message.parts.filter((part) => part.type !== "text");
  const body = make("div", { className: "body" });
  if (visuals.length) {
    body.append(make("ul", { className: "visuals" }, ...visuals.map((part, i) => make("li", {}, findVisual(part, plans?.[i])))));
  }
  body.append(...formatText(message.parts.filter((part) => part.type === "text").map((part) => part.text).join("")));
  const element = make("article", { "data-role": message.role }, make("h2", {}, message.role === "user" ? "You" : "Answer"), body);
  if (message.error) element.append(make("div", { className: "error" }, message.error));
  const foot = make("div", { className: "foot" });
  if (message.note) foot.append(make("span", {}, message.note));
  for (const { label, key, run } of actions) {
    const button = make("button", { type: "button", "data-key": key }, label);
    button.onclick = () => run(button);
    foot.append(button);
  }
  if (foot.childElementCount) element.append(foot);
  return element;
}
