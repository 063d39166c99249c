// Keyboard shortcuts. "?" lists them.

import { byKey } from "./api.js";
import { closeButton, dialog } from "./parts.js";
import { h } from "./render.js";
import { app } from "./state.js";

const GO = {
  o: ["", "Overview"],
  j: ["/jobs", "Jobs"],
  t: ["/job-types", "Job types"],
  s: ["/schedules", "Schedules"],
  r: ["/workers", "Workers"],
  e: ["/errors", "Errors"],
  a: ["/activity", "Activity"],
  p: ["/operations", "Operations"],
  m: ["/members", "Members"],
};

const LIST = /** @type {[string, string][]} */ ([
  ["/", "Search"],
  ["f", "Go to the filters of the list"],
  ["j", "Next row"],
  ["k", "Previous row"],
  ["x", "Select the row"],
  ["Enter", "Open the row"],
  ["c", "Create a job"],
  ["g w", "All workspaces"],
  ...Object.entries(GO).map(([key, [, name]]) => [`g ${key}`, name]),
  ["?", "Show these shortcuts"],
  ["Esc", "Close a dialog or a menu"],
]);

let waiting = 0; // until when "g" waits for its second key

/**
 * @param {KeyboardEvent} event
 * @param {import("./state.js").Context["go"]} go
 */
export function shortcut(event, go) {
  const target = /** @type {HTMLElement} */ (event.target);
  // Not `app.dialogs`: it keeps a dialog that Esc has closed until the dialog's close event.
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]") || app.login) return;
  if (
    /^(TEXTAREA|SELECT)$/.test(target.tagName) ||
    (target instanceof HTMLInputElement && !/^(checkbox|radio)$/.test(target.type))
  ) return;
  const home = app.workspace && `/${app.workspace.workspace_id}`;
  const act = event.timeStamp < waiting ? second(event.key, home, go) : first(event, home, go);
  waiting = event.key === "g" && !act ? event.timeStamp + 1500 : 0;
  if (!act) return;
  event.preventDefault();
  act();
}

function first(event, home, go) {
  const focus = (id) => {
    const node = document.getElementById(id);
    return node && (() => (node.closest("details")?.setAttribute("open", ""), node.focus()));
  };
  const row = document.activeElement?.closest("tr, li");
  const box = row?.querySelector("input[type=checkbox]");
  const keys = {
    "?": showShortcuts,
    "/": focus("search"),
    f: focus("filter"),
    j: () => step(1),
    k: () => step(-1),
    x: box && (() => /** @type {HTMLElement} */ (box).click()),
    c: home && !/^(viewer|worker)$/.test(app.workspace.role) && (() => go(`${home}/jobs/new`)),
  };
  return Object.hasOwn(keys, event.key) ? keys[event.key] : null;
}

function second(key, home, go) {
  if (key === "w") return () => go("");
  if (!home || !Object.hasOwn(GO, key) || (key === "m" && byKey())) return null;
  return () => go(home + GO[key][0]);
}

// Rows are the elements with a link of the class "row".
function step(by) {
  const rows = /** @type {HTMLElement[]} */ ([...document.querySelectorAll("main a.row")]);
  const at = rows.findIndex((link) => link.closest("tr, li")?.contains(document.activeElement));
  rows[Math.min(rows.length - 1, Math.max(0, at + (at < 0 ? 1 : by)))]?.focus();
}

export function showShortcuts() {
  dialog("Keyboard shortcuts", (close) => [
    h(
      "dl",
      { class: "keys" },
      LIST.map(([keys, does]) =>
        h(
          "div",
          { key: keys },
          h("dt", {}, keys.split(" ").map((key, i) => [i > 0 && " ", h("kbd", { key }, key)])),
          h("dd", {}, does),
        )
      ),
    ),
    h("div", { class: "buttons" }, closeButton(close)),
  ]);
}
