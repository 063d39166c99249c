// A JSON value that can be folded, searched, copied and saved.

import { isRaw } from "./api.js";
import { copyButton } from "./parts.js";
import { h } from "./render.js";
import { update } from "./state.js";

const OPEN = 100; // a value of more lines is folded at first
const SHOWN = 200; // so many items of a list or object are shown at once

/** @typedef {{text: string, open: Map<string, boolean>, more: Map<string, number>}} State */

/** The state of a viewer: what is searched for, and what is folded. @returns {State} */
export const jsonState = () => ({ text: "", open: new Map(), more: new Map() });

const isLeaf = (value) => value === null || typeof value !== "object" || isRaw(value);
const leafText = (value) => JSON.stringify(value);

/** @param {any} value @returns {number} */
const lines = (value, limit = OPEN + 1) => {
  if (isLeaf(value)) return 1;
  let n = 2;
  for (const each of Object.values(value)) {
    n += lines(each, limit - n);
    if (n > limit) break;
  }
  return n;
};

/** Whether a key or a value in it contains the text. */
function has(value, text, name = "") {
  if (name.toLowerCase().includes(text)) return true;
  if (isLeaf(value)) return leafText(value).toLowerCase().includes(text);
  return Object.entries(value).some(([key, each]) => has(each, text, Array.isArray(value) ? "" : key));
}

/** The text with each occurrence of what is searched for marked. */
function marked(text, wanted) {
  if (!wanted) return text;
  const parts = [];
  let from = 0;
  for (let at = text.toLowerCase().indexOf(wanted); at >= 0; at = text.toLowerCase().indexOf(wanted, from)) {
    parts.push(text.slice(from, at), h("mark", {}, text.slice(at, at + wanted.length)));
    from = at + wanted.length;
  }
  return [parts, text.slice(from)];
}

/**
 * @param {string} title
 * @param {any} value
 * @param {State} state
 * @param {string} file the name of the file that it is saved as
 */
export function json(title, value, state, file) {
  if (value === null || value === undefined) {
    return h("section", { class: "json" }, h("h2", {}, title), h("p", { class: "none" }, "None."));
  }
  const text = JSON.stringify(value, null, 2);
  const wanted = state.text.toLowerCase();
  const long = lines(value) > 12;
  return h(
    "section",
    { class: "json" },
    h(
      "div",
      { class: "toolbar" },
      h("h2", {}, title),
      h(
        "div",
        { class: "buttons" },
        long &&
          h("input", {
            type: "search",
            class: "small",
            "aria-label": `Search in ${title.toLowerCase()}`,
            placeholder: "Search",
            value: state.text,
            oninput: (event) => ((state.text = event.target.value), update()),
          }),
        copyButton(text),
        h("button", { type: "button", class: "small", onclick: () => save(text, file) }, "Save"),
      ),
    ),
    wanted && !has(value, wanted) ? h("p", { class: "none", role: "status" }, "Not found.") : h(
      "div",
      { class: "tree", tabindex: 0, role: "region", "aria-label": title, dir: "auto" },
      node(value, null, "$", state, wanted, lines(value) <= OPEN, true),
    ),
  );
}

function node(value, name, path, state, wanted, fits, last) {
  const comma = last ? "" : ",";
  const label = name !== null && [h("span", { class: "name" }, marked(JSON.stringify(name), wanted)), ": "];
  if (isLeaf(value)) {
    return h(
      "div",
      { key: path },
      label,
      h(
        "span",
        { class: `is-${isRaw(value) ? "number" : value === null ? "null" : typeof value}` },
        marked(leafText(value), wanted),
      ),
      comma,
    );
  }
  const [begin, end] = Array.isArray(value) ? "[]" : "{}";
  const entries = Object.entries(value);
  if (!entries.length) return h("div", { key: path }, label, begin, end, comma);
  const open = wanted ? has(value, wanted) : (state.open.get(path) ?? (fits || path === "$"));
  const shown = state.more.get(path) || SHOWN;
  return h(
    "details",
    { key: path, open, ontoggle: (event) => wanted || (state.open.set(path, event.target.open), update()) },
    h("summary", {}, label, begin, !open && h("span", { class: "hint" }, ` ${entries.length} ${end}${comma}`)),
    open && [
      h(
        "div",
        { class: "inside" },
        entries.slice(0, shown).map(([key, each], i) =>
          node(each, Array.isArray(value) ? null : key, `${path}.${key}`, state, wanted, fits, i === entries.length - 1)
        ),
      ),
      entries.length > shown &&
      h("button", {
        type: "button",
        class: "small",
        onclick: () => (state.more.set(path, shown + 10 * SHOWN), update()),
      }, `Show more of ${entries.length}`),
      h("div", {}, end, comma),
    ],
  );
}

function save(text, name) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const link = document.createElement("a");
  Object.assign(link, { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
