// The header: the workspace, its pages, the search, and the user's menu.

import { byKey, get, HOME, HOST_LOGIN, logOut } from "./api.js";
import { number } from "./format.js";
import { link, ROLES, unseen } from "./parts.js";
import { h } from "./render.js";
import { search } from "./search.js";
import { showShortcuts } from "./shortcuts.js";
import { app, update } from "./state.js";

const DOCS = document.documentElement.dataset.docs;

/** The pages of a workspace: address, name, and the role that sees them in the header. */
const PAGES = [
  ["", "Overview", "viewer"],
  ["/jobs", "Jobs", "viewer"],
  ["/job-types", "Job types", "viewer"],
  ["/schedules", "Schedules", "viewer"],
  ["/workers", "Workers", "viewer"],
  ["/errors", "Errors", "viewer"],
  ["/activity", "Activity", "viewer"],
  ["/operations", "Operations", "viewer"],
  ["/members", "Members", "viewer"],
  ["/keys", "Keys", "owner"],
  ["/webhooks", "Webhooks", "owner"],
  ["/settings", "Settings", "owner"],
];
const NOT_BY_KEY = ["/members", "/keys", "/webhooks"];
const WITH_DETAILS = ["/jobs", "/webhooks"];

/** @param {import("./state.js").Context["go"]} go */
export function header(go) {
  const { workspace, me } = app;
  return h(
    "header",
    { id: "top" },
    h(
      "div",
      { class: "brand" },
      link("", { "aria-current": location.pathname === HOME ? "page" : null }, "jobapi"),
      workspace && switcher(workspace),
    ),
    workspace && h("nav", { "aria-label": "Workspace" }, pages(workspace)),
    workspace && search(String(workspace.workspace_id), go),
    me && !app.login && user(me),
  );
}

function pages(workspace) {
  const home = `/${workspace.workspace_id}`;
  const here = location.pathname.slice(HOME.length).replace(/\/$/, "");
  const sees = (role) => ROLES.indexOf(workspace.role) >= ROLES.indexOf(role);
  return PAGES.filter(([path, , role]) => sees(role) && !(byKey() && NOT_BY_KEY.includes(path))).map(([path, name]) => {
    const current = here === home + path || (WITH_DETAILS.includes(path) && here.startsWith(`${home}${path}/`));
    return link(home + path, { key: path, "aria-current": current ? "page" : null }, name);
  });
}

// Menus

/** A button and what it opens. One menu is open at a time. */
function menu(name, label, properties, content) {
  const open = app.menu === name;
  return h(
    "div",
    { class: `menu ${name}` },
    h(
      "button",
      {
        type: "button",
        id: `menu-${name}`,
        "aria-expanded": String(open),
        "aria-controls": open ? `in-${name}` : null,
        ...properties,
        onclick: () => toggle(name, properties.opened),
      },
      label,
      h("span", { "aria-hidden": "true" }, " ▾"),
    ),
    open && h("div", { class: "sheet", id: `in-${name}` }, content()),
  );
}

function toggle(name, opened) {
  app.menu = app.menu === name ? null : name;
  if (app.menu) opened?.();
  update();
}

function close() {
  if (!app.menu) return;
  app.menu = null;
  update();
}

document.addEventListener("click", (event) => {
  if (app.menu && !(/** @type {Element} */ (event.target).closest?.(`.menu.${app.menu}`))) close();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !app.menu) return;
  document.getElementById(`menu-${app.menu}`)?.focus();
  close();
});

// The workspaces, with their counts

let workspaces = null;

async function readWorkspaces() {
  workspaces = (await get("/workspace?limit=100&counts=true").catch(() => ({ data: [] }))).data;
  update();
}

function switcher(workspace) {
  return menu("switcher", h("span", { class: "name", dir: "auto" }, workspace.name), {
    title: "Switch workspace",
    opened: readWorkspaces,
  }, () => [
    !workspaces && h("p", { class: "hint" }, "Loading…"),
    workspaces &&
    h(
      "ul",
      {},
      workspaces.map((each) =>
        h(
          "li",
          { key: each.workspace_id },
          link(
            `/${each.workspace_id}/jobs`,
            { "aria-current": each.workspace_id === workspace.workspace_id ? "true" : null },
            h("span", { class: "name", dir: "auto" }, each.name),
            counts(each.counts),
          ),
        )
      ),
    ),
    link("", { class: "all" }, "All workspaces"),
  ]);
}

/** How many jobs of a workspace wait, run and have failed. */
export const counts = (found) =>
  found &&
  h(
    "span",
    { class: "counts" },
    ["pending", "running", "failed"].map((status) =>
      h("span", { class: `badge ${status}`, title: status }, number(found[status]), unseen(` ${status}`))
    ),
  );

// The user

function user(me) {
  return menu("user", h("span", { class: "name", dir: "auto" }, byKey() ? "API key" : me.username), {
    title: "Account and help",
  }, () => [
    !byKey() && !HOST_LOGIN && link("/account", {}, "Account"),
    me.is_admin && !HOST_LOGIN && link("/users", {}, "Users"),
    h("button", { type: "button", onclick: () => (close(), showShortcuts()) }, "Keyboard shortcuts"),
    DOCS && h("a", { href: DOCS }, "API documentation"),
    themes(),
    !HOST_LOGIN && h("button", { type: "button", onclick: leave }, "Log out"),
  ]);
}

const themes = () =>
  h(
    "fieldset",
    { class: "themes" },
    h("legend", {}, "Theme"),
    ["system", "light", "dark"].map((theme) =>
      h(
        "label",
        { class: "tick", key: theme },
        h("input", {
          type: "radio",
          name: "theme",
          value: theme,
          checked: document.documentElement.dataset.theme === theme,
          onchange: () => choose(theme),
        }),
        h("span", {}, theme),
      )
    ),
  );

function choose(theme) {
  document.documentElement.dispatchEvent(new CustomEvent("theme", { detail: theme }));
  update();
}

async function leave() {
  await logOut();
  location.assign(HOME);
}
