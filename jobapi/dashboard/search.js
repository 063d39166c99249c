// The search in the header: a job by its id, job types as one types, and the text of errors.

import { get, workspacePath } from "./api.js";
import { number } from "./format.js";
import { h } from "./render.js";
import { update } from "./state.js";

const TYPES = 8;
const JOB = /job_[0-9a-zA-Z_-]{8,}/;

let text = "";
let open = false;
let chosen = -1;
let types = /** @type {[string, number][]} */ ([]);
let read = { id: "", at: 0 };

async function readTypes(id) {
  if (read.id === id && Date.now() - read.at < 30_000) return;
  if (read.id !== id) types = [];
  read = { id, at: Date.now() };
  types = await jobTypes(id);
  update();
}

/** The job types of a workspace and how many jobs each has, the most frequent first. */
export async function jobTypes(id, options = {}) {
  const { by_type } = await get(workspacePath(id, "/stats"), options).catch(() => ({ by_type: {} }));
  const sum = (by) => Object.values(by).reduce((all, n) => all + n, 0);
  return /** @type {[string, number][]} */ (Object.entries(by_type).map(([type, by]) => [type, sum(by)])).sort((
    [, a],
    [, b],
  ) => b - a);
}

/** What the text may mean: names, notes and addresses. */
function options(id) {
  const wanted = text.trim();
  if (!wanted) return [];
  const job = wanted.match(JOB);
  if (job) return [{ name: job[0], note: "open the job", to: `/${id}/jobs/${encodeURIComponent(job[0])}` }];
  const found = types
    .filter(([type]) => type.toLowerCase().includes(wanted.toLowerCase()))
    .slice(0, TYPES)
    .map(([type, n]) => ({
      name: type,
      note: `job type, ${number(n)}`,
      to: `/${id}/jobs?job_type=${encodeURIComponent(type)}`,
    }));
  if (wanted.length > 2) {
    found.push({ name: wanted, note: "in the text of errors", to: `/${id}/jobs?error=${encodeURIComponent(wanted)}` });
  }
  return found;
}

/**
 * @param {string} id the workspace
 * @param {import("./state.js").Context["go"]} go
 */
export function search(id, go) {
  const now = () => (open ? options(id) : []);
  const found = now();
  const change = (changes) => {
    ({ text = text, open = open, chosen = chosen } = changes);
    update();
  };
  const pick = (option) => {
    change({ text: "", open: false, chosen: -1 });
    /** @type {HTMLElement|null} */ (document.getElementById("search"))?.blur();
    go(option.to);
  };
  // A key may come before the list is drawn that belongs to the text.
  const place = () => Math.min(chosen, now().length - 1);
  const keys = {
    ArrowDown: () => change({ open: true, chosen: Math.min(place() + 1, options(id).length - 1) }),
    ArrowUp: () => change({ chosen: Math.max(place() - 1, 0) }),
    Enter: () => now().length && pick(now()[Math.max(place(), 0)]),
    Escape: () => change({ open: false, text: open ? text : "" }),
  };
  return h(
    "div",
    { class: "search", role: "search" },
    h("input", {
      id: "search",
      type: "search",
      role: "combobox",
      placeholder: "Search",
      "aria-label": "Search",
      title: "A job id, a job type, or the text of an error ( / )",
      autocomplete: "off",
      spellcheck: "false",
      "aria-expanded": String(found.length > 0),
      "aria-controls": found.length ? "search-found" : null,
      "aria-activedescendant": place() >= 0 && found.length ? `search-${place()}` : null,
      value: text,
      onfocus: () => readTypes(id),
      onblur: () => change({ open: false }),
      oninput: (event) => change({ text: event.target.value, open: true, chosen: -1 }),
      onkeydown: (event) => {
        if (!keys[event.key]) return;
        if (event.key !== "Escape") event.preventDefault();
        keys[event.key]();
      },
    }),
    found.length > 0 &&
      h(
        "ul",
        { role: "listbox", id: "search-found", "aria-label": "Found" },
        found.map((option, i) =>
          // Before the input loses the focus, which closes the list.
          h(
            "li",
            {
              role: "option",
              id: `search-${i}`,
              "aria-selected": String(i === place()),
              onpointerdown: (event) => (event.preventDefault(), pick(option)),
            },
            h("span", {}, option.name),
            " ",
            h("span", { class: "hint" }, option.note),
          )
        ),
      ),
  );
}
