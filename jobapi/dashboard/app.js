// The frame around the pages: addresses, the login, errors of whole pages, and keys.

import { adopt, Away, byKey, forget, get, HOME, HOST_LOGIN, loggedIn, workspacePath } from "./api.js";
import { header } from "./header.js";
import { backoff, every, fine, pause, trouble, wake } from "./live.js";
import { login } from "./login.js";
import { link, pausedBanner, ROLES, updated } from "./parts.js";
import { h, render } from "./render.js";
import { shortcut } from "./shortcuts.js";
import { app, drawWith, update } from "./state.js";

// A new page is one line here and one file in pages.
const PAGES = /** @type {[RegExp, () => Promise<any>][]} */ ([
  [/^\/?$/, () => import("./pages/workspaces.js")],
  [/^\/(account)$/, () => import("./pages/account.js")],
  [/^\/(users)$/, () => import("./pages/users.js")],
  [/^\/(\d+)\/?$/, () => import("./pages/overview.js")],
  [/^\/(\d+)\/jobs\/?$/, () => import("./pages/jobs.js")],
  [/^\/(\d+)\/jobs\/new$/, () => import("./pages/job_form.js")],
  [/^\/(\d+)\/jobs\/([^/]+)\/edit$/, () => import("./pages/job_form.js")],
  [/^\/(\d+)\/jobs\/([^/]+)$/, () => import("./pages/job.js")],
  [/^\/(\d+)\/job-types$/, () => import("./pages/job_types.js")],
  [/^\/(\d+)\/schedules$/, () => import("./pages/schedules.js")],
  [/^\/(\d+)\/workers$/, () => import("./pages/workers.js")],
  [/^\/(\d+)\/errors$/, () => import("./pages/errors.js")],
  [/^\/(\d+)\/activity$/, () => import("./pages/activity.js")],
  [/^\/(\d+)\/operations$/, () => import("./pages/operations.js")],
  [/^\/(\d+)\/members$/, () => import("./pages/members.js")],
  [/^\/(\d+)\/keys$/, () => import("./pages/keys.js")],
  [/^\/(\d+)\/webhooks$/, () => import("./pages/webhooks.js")],
  [/^\/(\d+)\/webhooks\/([^/]+)$/, () => import("./pages/webhook.js")],
  [/^\/(\d+)\/settings$/, () => import("./pages/settings.js")],
]);

const root = document.getElementById("app");
const WORKSPACE = 15_000;
const changed = new EventTarget(); // gets a "wake" when the workspace has changed

let visit = new AbortController(); // ends the requests of the current page
let live = new AbortController(); // ends its updates
let shown = null; // its address
let opening = false; // whether the page of the address is not shown yet

history.scrollRestoration = "manual";

/**
 * Go to a page. The page that is left keeps its scroll position and focus for "Back". With `keep`,
 * the new one keeps them too: it is the same page with other filters.
 * @param {string} address
 */
function go(address, { replace = false, keep = false } = {}) {
  if (!replace) remember();
  history[replace ? "replaceState" : "pushState"](replace ? history.state : null, "", HOME + address);
  return open({ keep });
}

function remember() {
  history.replaceState({ scroll: scrollY, focus: document.activeElement?.id || null }, "");
}

/**
 * Open the page of the address. Until its data has come, the page before it stays.
 * @param {{place?: {scroll: number, focus: string|null}|null, keep?: boolean}} [options] `place`
 *   is where the user was in it
 */
async function open({ place = null, keep = false } = {}) {
  opening = true;
  visit.abort();
  live.abort();
  visit = new AbortController();
  const { signal } = visit;
  const path = location.pathname.slice(HOME.length);
  if (!loggedIn()) return askToLogIn("");
  app.busy = true;
  update();
  for (let failures = 0;; failures++) {
    let made;
    try {
      made = await load(path, signal);
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 401) return;
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
    mount(made, path, place, keep);
    return;
  }
}

// The modules of a page come from the same service, which may be unavailable.
const imported = (read) => read().catch((error) => Promise.reject(error instanceof TypeError ? new Away() : error));

async function load(path, signal) {
  const [found, read] =
    PAGES.map(([pattern, read]) => /** @type {const} */ ([path.match(pattern), read])).find(([found]) => found) ||
    [null];
  const numbered = found && /^\d+$/.test(found[1] || "");
  const [module, workspace, user] = await Promise.all([
    found && imported(read),
    numbered && get(workspacePath(found[1]), { signal }),
    app.me || (byKey() ? {} : get("/auth/me", { signal })),
  ]);
  app.me = user;
  app.workspace = workspace || null;
  if (!found) {
    return {
      title: "Page not found",
      view: () => h("p", {}, "This page does not exist. ", link("", {}, "All workspaces")),
    };
  }
  return module.default({
    id: numbered ? found[1] : "",
    rest: found[2] || "",
    workspace,
    me: user,
    signal,
    query: new URLSearchParams(location.search),
    may: (role) => Boolean(workspace) && ROLES.indexOf(workspace.role) >= ROLES.indexOf(role),
    go,
    reload: () => open({ keep: true }),
  });
}

const refusal = (error) => ({
  title: error.status === 404 ? "Not found" : "Error",
  view: () => [
    h("p", { class: "problem", role: "alert" }, error.message),
    h(
      "p",
      {},
      h("button", { type: "button", onclick: () => open({ keep: true }) }, "Try again"),
      " ",
      link("", {}, "All workspaces"),
    ),
  ],
});

function mount(page, path, place, keep) {
  const first = shown === null;
  opening = false;
  shown = path;
  app.page = page;
  app.busy = false;
  app.heard = null;
  app.now = Date.now();
  app.menu = null;
  if (!keep) app.dialogs = [];
  live = new AbortController();
  draw({ reset: true });
  // On a phone the links scroll sideways. Elsewhere this would only cost a layout.
  if (matchMedia("(max-width: 640px)").matches) {
    document.querySelector("#top nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  if (!keep) {
    const target = place?.focus && document.getElementById(place.focus);
    const heading = /** @type {HTMLElement} */ (document.querySelector("main h1"));
    if (target || !first) (target || heading).focus({ preventScroll: true });
    if (!first || place) scrollTo(0, place?.scroll || 0);
  }
  keepCurrent(live.signal);
}

/** Keep the page up to date, and the workspace, whose pause every page shows. */
function keepCurrent(signal) {
  app.page.live?.(signal);
  const { workspace } = app;
  if (!workspace) return;
  every(WORKSPACE, signal, async () => {
    const before = app.workspace;
    // Errors are shown by the page's own requests.
    const found = await get(workspacePath(workspace.workspace_id), { signal }).catch(() => null);
    // An action on this page may have been faster.
    if (found && !signal.aborted && app.workspace === before) app.workspace = found;
    update();
    return null;
  }, changed);
}

document.addEventListener("workspace", () => wake(changed));

function draw({ reset = false } = {}) {
  const { page, workspace, login: ended } = app;
  const title = page ? [page.title, workspace?.name, "jobapi"].filter(Boolean).join(" · ") : "jobapi";
  if (document.title !== title) document.title = title;
  render(root, [
    h("a", { class: "skip", href: "#main" }, "Skip to the content"),
    header(go),
    h(
      "div",
      { id: "trouble", role: "alert" },
      app.trouble !== null && [
        h("p", {}, h("strong", {}, app.trouble), " This page may be out of date. Retrying automatically."),
        h("button", { type: "button", onclick: () => wake() }, "Try now"),
      ],
    ),
    h("div", { id: "paused", role: "status" }, workspace?.paused && !app.login && pausedBanner(workspace)),
    h(
      "main",
      { id: "main", tabindex: -1, "aria-busy": app.busy ? "true" : null },
      page &&
        [
          h(
            "div",
            { class: "title" },
            h("h1", { tabindex: -1 }, page.heading || page.title),
            page.watched && updated(),
          ),
          h("div", { key: shown }, page.view()),
        ],
      ended && !page && [h("h1", { tabindex: -1 }, "Log in"), ended.view(ended.message)],
    ),
    ended &&
    page &&
    h(
      "dialog",
      {
        key: "login",
        "aria-labelledby": "login-title",
        oncancel: (event) => event.preventDefault(),
        mounted: (node) => node.showModal(),
      },
      h("h2", { id: "login-title", tabindex: -1 }, "Log in again"),
      h("p", {}, "What you have entered on this page is kept."),
      ended.view(ended.message),
    ),
    app.dialogs.map((each) => h("div", { key: each.key }, each.view())),
    h("div", { id: "said", class: "unseen", role: "status", "aria-live": "polite" }, app.said),
  ], { reset });
}

// The login

function askToLogIn(message) {
  if (app.login) return;
  live.abort();
  app.busy = false;
  shown ??= "";
  const before = app.me?.user_id;
  app.login = { message, view: login(() => resume(before)) };
  draw();
}

async function resume(before) {
  // The same user goes on where they were; another one must not see what this one has opened.
  const user = byKey() ? {} : await get("/auth/me");
  if (app.page && user.user_id !== before) return location.reload();
  app.login = null;
  app.me = user;
  if (opening) return open();
  live = new AbortController();
  update();
  keepCurrent(live.signal);
}

document.addEventListener("ended", (event) => {
  if (!HOST_LOGIN) forget();
  askToLogIn(/** @type {CustomEvent} */ (event).detail.message);
});

// Another tab has logged in.
document.addEventListener("session", () => {
  if (app.login && loggedIn()) resume(app.me?.user_id).catch(() => {});
});

// Links within the dashboard

document.addEventListener("click", (event) => {
  const anchor = /** @type {Element} */ (event.target).closest?.("a[href]");
  if (
    !(anchor instanceof HTMLAnchorElement) || event.button || event.ctrlKey || event.metaKey || event.shiftKey ||
    event.altKey
  ) return;
  if (event.defaultPrevented || anchor.target || anchor.hasAttribute("download")) return;
  const url = new URL(anchor.href);
  const ours = url.origin === location.origin && (url.pathname === HOME || url.pathname.startsWith(`${HOME}/`));
  if (!ours || (url.hash && url.pathname === location.pathname)) return;
  event.preventDefault();
  go(url.pathname.slice(HOME.length) + url.search);
});

addEventListener("popstate", (event) => open({ place: event.state }));
addEventListener("pagehide", remember);
document.addEventListener("keydown", (event) => shortcut(event, go));

drawWith(draw);
await adopt();
await open({ place: history.state });

// Load the other pages in advance, so that a click does not wait for them.
const idle = window.requestIdleCallback || ((run) => setTimeout(run, 1000));
idle(() => PAGES.forEach(([, read]) => read().catch(() => {})));
