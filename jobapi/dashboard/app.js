// The frame: routing, the header, login, and errors of whole views.

import { Away, HOME, HOST_LOGIN, byKey, forget, get, logIn, logInByKey, logOut, loggedIn, workspacePath } from "./api.js";
import { ROLES, field, form, h } from "./dom.js";
import { backoff, fine, pause, trouble } from "./live.js";

const VIEWS = [
  [/^\/?$/, () => import("./workspaces.js")],
  [/^\/(\d+)\/?$/, () => import("./overview.js")],
  [/^\/(\d+)\/jobs\/?$/, () => import("./jobs.js")],
  [/^\/(\d+)\/jobs\/new$/, () => import("./create.js")],
  [/^\/(\d+)\/jobs\/([^/]+)$/, () => import("./job.js")],
  [/^\/(\d+)\/operations$/, () => import("./operations.js")],
  [/^\/(\d+)\/(members|keys|settings)$/, () => import("./people.js")],
];

const main = document.getElementById("main");
const top = document.getElementById("top");

const LOG_IN = "log in"; // the login form has no address of its own

let me = null; // the user who is logged in
let shown = null; // the address of the current view
let view = new AbortController(); // aborts the requests of the current view

const here = () => location.pathname.slice(HOME.length);

export function go(address, { replace = false } = {}) {
  history[replace ? "replaceState" : "pushState"](null, "", HOME + address);
  return show();
}

async function show() {
  view.abort();
  view = new AbortController();
  const { signal } = view;
  if (!loggedIn()) return showLogIn();
  const path = here();
  const again = path === shown;
  main.setAttribute("aria-busy", "true");
  for (let failures = 0; ; failures++) {
    let made;
    try {
      made = await open(path, signal);
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 401) return ended(error);
      if (error.passing) {
        trouble(error);
        await pause(backoff(failures, error), signal);
        if (signal.aborted) return;
        continue;
      }
      if (!error.status) throw error;
      made = refusal(error);
    }
    if (signal.aborted) return;
    fine();
    mount(made, again, path);
    made.live?.(signal);
    return;
  }
}

// The modules of a view come from the same service, which may be unavailable.
const load = (read) => read().catch(() => Promise.reject(new Away()));

async function open(path, signal) {
  const [found, read] = VIEWS.map(([pattern, read]) => [path.match(pattern), read]).find(([found]) => found) || [];
  const [, id, rest] = found || [];
  const [module, workspace, user] = await Promise.all([
    found && load(read),
    id && get(workspacePath(id), { signal }),
    me || (byKey() ? {} : get("/auth/me", { signal })),
  ]);
  me = user;
  if (!found) {
    header(null);
    return { title: "Page not found", node: h("p", {}, "This page does not exist. ", h("a", { href: HOME }, "All workspaces")) };
  }
  const made = await module.default({
    id,
    rest,
    path,
    workspace,
    me,
    signal,
    query: new URLSearchParams(location.search),
    go,
    reload: show,
    may: (role) => workspace && ROLES.indexOf(workspace.role) >= ROLES.indexOf(role),
  });
  if (!signal.aborted) header(workspace);
  return made;
}

function refusal(error) {
  return {
    title: error.status === 404 ? "Not found" : "Error",
    node: h(
      "div",
      { class: "refusal" },
      h("p", { class: "problem", role: "alert" }, error.message),
      h("p", {}, h("button", { type: "button", onclick: show }, "Try again"), " ", h("a", { href: HOME }, "All workspaces")),
    ),
  };
}

// When the view at the same address is rendered again, the focused input keeps the
// focus, the selection and the text that the user has typed.
function mount({ title, node, heading }, again, path) {
  const active = again && main.contains(document.activeElement) ? document.activeElement : null;
  const name = h("h1", { tabindex: -1 }, heading || title);
  main.removeAttribute("aria-busy");
  main.replaceChildren(name, node);
  document.title = `${title} · Jobs`;
  const same = active?.id && document.getElementById(active.id);
  if (same) {
    if (/^(text|search)$/.test(active.type) && active.value !== active.defaultValue) same.value = active.value;
    same.focus({ preventScroll: true });
    if (active.selectionStart != null) same.setSelectionRange?.(active.selectionStart, active.selectionEnd);
  } else if (!again) {
    document.querySelectorAll("dialog").forEach((dialog) => dialog.remove());
    if (shown !== null) name.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
  shown = path;
}

function header(workspace) {
  const path = here();
  const id = workspace?.workspace_id;
  const link = (address, text, current) => h("a", { href: HOME + address, "aria-current": current && "page" }, text);
  const pages = id && [
    link(`/${id}`, "Overview", path === `/${id}`),
    link(`/${id}/jobs`, "Jobs", path.startsWith(`/${id}/jobs`)),
    link(`/${id}/operations`, "Operations", path === `/${id}/operations`),
    !byKey() && link(`/${id}/members`, "Members", path === `/${id}/members`),
    !byKey() && workspace.role === "owner" && link(`/${id}/keys`, "Keys", path === `/${id}/keys`),
    workspace.role === "owner" && link(`/${id}/settings`, "Settings", path === `/${id}/settings`),
  ];
  top.replaceChildren(
    h("div", { class: "brand" }, link("", "Jobs", !id), workspace && h("span", { class: "workspace", dir: "auto" }, workspace.name)),
    pages ? h("nav", { "aria-label": "Workspace" }, pages) : h("span", { class: "nav" }),
    h(
      "div",
      { class: "who" },
      h("span", {}, byKey() ? "API key" : me?.username || ""),
      !HOST_LOGIN && h("button", { type: "button", onclick: leave }, "Log out"),
    ),
  );
}

async function leave() {
  await logOut();
  location.assign(HOME);
}

// Log in

function ended(error) {
  forget();
  me = null;
  if (HOST_LOGIN) {
    top.replaceChildren(h("div", { class: "brand" }, "Jobs"));
    mount({ ...refusal(error), title: "Log in" }, false, LOG_IN);
  } else showLogIn(error.message);
}

document.addEventListener("ended", (event) => {
  view.abort();
  ended(event.detail);
});

function showLogIn(message) {
  fine();
  top.replaceChildren(h("div", { class: "brand" }, "Jobs"));
  const name = h("input", { name: "username", autocomplete: "username", autocapitalize: "none", spellcheck: "false", required: true });
  const password = h("input", { name: "password", type: "password", autocomplete: "current-password", required: true });
  const key = h("input", { name: "key", type: "password", autocomplete: "off", placeholder: "jk_…" });
  const byName = form({}, [field("Username", name), field("Password", password)], "Log in", async () => {
    await logIn(name.value, password.value);
    await show();
  });
  const withKey = form({}, field("API key", key, "Gives access to one workspace, without its members and keys."), "Log in with the key", async () => {
    await logInByKey(key.value.trim());
    await show();
  });
  const node = h(
    "div",
    { class: "login" },
    message && h("p", { class: "problem", role: "alert" }, message),
    byName,
    h("details", {}, h("summary", {}, "Use an API key instead"), withKey),
  );
  mount({ title: "Log in", node }, false, LOG_IN);
  name.focus();
}

// Links within the dashboard, and the keyboard shortcut

document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href]");
  if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  if (event.defaultPrevented || link.target || link.hasAttribute("download")) return;
  const url = new URL(link.href);
  const ours = url.origin === location.origin && (url.pathname === HOME || url.pathname.startsWith(`${HOME}/`));
  if (!ours || (url.hash && url.pathname === location.pathname)) return;
  event.preventDefault();
  go(url.pathname.slice(HOME.length) + url.search);
});

addEventListener("popstate", show);

document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (/^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName) || document.querySelector("dialog[open]")) return;
  const filter = document.getElementById("filter");
  if (!filter) return;
  event.preventDefault();
  filter.closest("details").open = true;
  filter.focus();
});

await show();

// Load the other views in advance, so that a click does not wait for them.
const idle = window.requestIdleCallback || ((run) => setTimeout(run, 1000));
idle(() => VIEWS.forEach(([, read]) => loggedIn() && read().catch(() => {})));
