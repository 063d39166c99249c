// The components that pages share.

import { HOME, parse, Problem } from "./api.js";
import { ago, moment } from "./format.js";
import { focusNear, h, pathOf } from "./render.js";
import { app, say, update } from "./state.js";

/** @typedef {import("./render.js").Tree} Tree */

// The API's enumerations

export const ROLES = ["viewer", "worker", "member", "owner"];
export const STATUSES = ["pending", "running", "success", "failed", "cancelled"];
export const PRIORITIES = ["low", "normal", "high", "urgent"];
export const ENDED = ["success", "failed", "cancelled"];

export const capital = (text) => text[0].toUpperCase() + text.slice(1);

// Values

export const badge = (status, ...more) =>
  h("span", { class: `badge ${STATUSES.includes(status) ? status : ""}` }, status, more);

export function bar(percent, message) {
  const value = Math.min(100, Math.max(0, percent || 0));
  return h(
    "span",
    { class: "bar" },
    h("progress", { max: 100, value, "aria-label": "Progress" }),
    h("span", {}, `${value} %`),
    message && h("span", { class: "message", dir: "auto", title: message }, message),
  );
}

/** Who did something: a user or an API key, by name where it is known, and the worker. */
export function who({ worker, user_id, key_id }, names) {
  const key = key_id && `API key ${names.keys.get(key_id) || key_id}`;
  const account = key || (user_id && (names.users.get(user_id) || `user ${user_id}`));
  return worker && account ? `${worker} (${account})` : worker || account || "";
}

export function copyButton(text, label = "Copy") {
  if (!navigator.clipboard) return null;
  return h("button", {
    type: "button",
    class: "small",
    onclick: () => navigator.clipboard.writeText(text).then(() => say("Copied")),
  }, label);
}

// Links and tables

export const address = (path, query) => `${path}${query && String(query) ? `?${query}` : ""}`;

/** A link to a page of the dashboard. */
export const link = (path, properties, ...content) => h("a", { href: HOME + path, ...properties }, content);

/**
 * A table. A heading is a text or a leaf; an empty one gets a name for screen readers.
 * @param {Tree[]} headings
 * @param {Tree[]} body
 * @param {Record<string, any>} [properties]
 */
export function table(headings, body, properties) {
  return h(
    "table",
    { role: "table", ...properties },
    h(
      "thead",
      { role: "rowgroup" },
      h("tr", { role: "row" }, headings.map((heading) => h("th", { role: "columnheader", scope: "col" }, heading))),
    ),
    h("tbody", { role: "rowgroup" }, body),
  );
}

export const unseen = (text) => h("span", { class: "unseen" }, text);

/** @param {string} label the heading of its column, shown beside it on a phone */
export const cell = (label, ...content) => h("td", { role: "cell", "data-label": label }, content);

export const empty = (...content) => h("p", { class: "none" }, content);

/** Links to the pages of a list by number. */
export function pager(path, query, { total_pages }) {
  const page = Number(query.get("page")) || 1;
  if (total_pages < 2 && page === 1) return null;
  const to = (number, text, rel) => {
    const there = new URLSearchParams(query);
    there.set("page", String(number));
    return link(address(path, there), { rel }, text);
  };
  return h(
    "nav",
    { class: "pages", "aria-label": "Pages" },
    page > 1 && to(page - 1, "Previous", "prev"),
    h("span", {}, `Page ${page} of ${Math.max(page, total_pages)}`),
    page < total_pages && to(page + 1, "Next", "next"),
  );
}

/** When a page was last updated; it warns if that is long ago. */
export function updated() {
  if (!app.heard) return null;
  const late = app.now - app.heard > 15_000;
  const at = new Date(app.heard).toISOString();
  return h(
    "span",
    { class: `updated ${late ? "late" : ""}`, title: moment(at) },
    late ? `Not updated since ${ago(at).replace(" ago", "")} ago` : `Updated ${ago(at)}`,
  );
}

/** What every page of a paused workspace says. */
export const pausedBanner = ({ workspace_id: id, paused_reason: reason, role }) =>
  h(
    "p",
    {},
    h("strong", {}, "This workspace is paused."),
    " Workers get no jobs; running jobs continue. ",
    reason && ["Reason: ", h("span", { dir: "auto" }, reason), " "],
    role === "owner" && link(`/${id}/settings`, {}, "Resume it in the settings"),
  );

// Forms

/**
 * A form's state: the messages of the last attempt and whether one is under way.
 * @returns {{busy: boolean, problem: string, wrong: Record<string, string>}}
 */
export const formState = () => ({ busy: false, problem: "", wrong: {} });

/**
 * A field with its label, hint and message. The message of an error belongs to it by `name`.
 * @param {ReturnType<typeof formState>} state
 * @param {string} label
 * @param {import("./render.js").Element_} input with a name and an id, which is the name by default
 * @param {Tree} [hint]
 */
export function field(state, label, input, hint) {
  const { name } = input.properties;
  const id = input.properties.id || `field-${name}`;
  const wrong = state.wrong[name];
  const described = [hint && `${id}-hint`, wrong && `${id}-wrong`].filter(Boolean).join(" ");
  const properties = {
    ...input.properties,
    id,
    "aria-describedby": described || null,
    "aria-invalid": wrong ? "true" : null,
  };
  return h(
    "div",
    { class: "field" },
    h("label", { for: id }, label),
    { ...input, properties },
    hint && h("p", { class: "hint", id: `${id}-hint` }, hint),
    wrong && h("p", { class: "wrong", id: `${id}-wrong` }, wrong),
  );
}

export const input = (name, properties) =>
  h("input", { name, type: "text", value: "", autocomplete: "off", spellcheck: "false", ...properties });

/** @param {(string|[string, string])[]} options */
export const select = (name, options, chosen, properties) =>
  h(
    "select",
    { name, value: chosen, ...properties },
    options.map((option) => {
      const [value, text] = Array.isArray(option) ? option : [option, option];
      return h("option", { value, key: value }, text);
    }),
  );

/**
 * A form whose button is disabled while it is sent. Errors of `send` are shown in it.
 * @param {ReturnType<typeof formState>} state
 * @param {Record<string, any>} properties
 * @param {Tree} body
 * @param {string} label of its button
 * @param {(fields: any) => Promise<any>} send gets the form's elements
 * @param {Tree} [more] buttons beside the first
 */
export function form(state, properties, body, label, send, more) {
  return h(
    "form",
    {
      novalidate: true,
      ...properties,
      onsubmit: (event) => {
        event.preventDefault();
        submit(state, event.target, send);
      },
    },
    body,
    state.problem && h("p", { class: "problem", role: "alert" }, state.problem),
    h("div", { class: "buttons" }, h("button", { class: "primary", disabled: state.busy }, label), more),
  );
}

async function submit(state, node, send) {
  if (state.busy) return;
  Object.assign(state, { busy: true, problem: "", wrong: {} });
  update();
  try {
    await send(node.elements);
  } catch (error) {
    const rest = [];
    for (const [name, messages] of Object.entries(error.errors || {})) {
      const known = node.elements[name] ? name : name.split(".")[0];
      if (node.elements[known]) state.wrong[known] = `${name === known ? "" : `${name}: `}${messages.join(" ")}`;
      else rest.push(`${name}: ${messages.join(" ")}`);
    }
    if (!Object.keys(error.errors || {}).length) rest.push(error.message);
    state.problem = rest.join(" ");
  } finally {
    state.busy = false;
    update();
    requestAnimationFrame(() => {
      const first = node.querySelector("[aria-invalid]");
      if (!first) return;
      first.closest("details")?.setAttribute("open", "");
      first.focus();
    });
  }
}

/** A run of digits as a number. Anything else is sent unchanged; the service explains what is wrong. */
export const whole = (text) => (/^\d+$/.test(text) ? Number(text) : text);

/** The JSON object that was entered in the field `name`. */
export function jsonObject(name, text) {
  const wrong = (message) => new Problem(422, { detail: message, errors: { [name]: [message] } });
  let value;
  try {
    value = parse(text);
  } catch (error) {
    throw wrong(`Not valid JSON: ${error.message}`);
  }
  if (value === null || typeof value !== "object" || Array.isArray(value)) {
    throw wrong('Enter a JSON object, such as {"name": "value"}.');
  }
  return value;
}

// Dialogs

let dialogs = 0;

/**
 * Open a modal dialog. Its heading gets the focus, so that no key press meant for the page acts
 * in it. Returns the function that closes it.
 * @param {string} title
 * @param {(close: () => void) => Tree} content
 * @param {{closed?: () => void, cancel?: boolean}} [options] `closed` is called after it is closed in any way; with `cancel` false the user cannot close it
 */
export function dialog(title, content, { closed, cancel = true } = {}) {
  const key = ++dialogs;
  const around = pathOf(document.activeElement);
  const close = () => {
    if (!app.dialogs.some((each) => each.key === key)) return;
    app.dialogs = app.dialogs.filter((each) => each.key !== key);
    update();
    closed?.();
    requestAnimationFrame(() =>
      requestAnimationFrame(() => document.activeElement === document.body && focusNear(around))
    );
  };
  const shown = (node) => {
    node.showModal();
    node.querySelector("[autofocus], h2").focus();
  };
  const view = () =>
    h(
      "dialog",
      {
        key: `dialog-${key}`,
        "aria-labelledby": `dialog-${key}`,
        mounted: shown,
        onclose: close,
        oncancel: (event) => cancel || event.preventDefault(),
      },
      h("h2", { id: `dialog-${key}`, tabindex: -1 }, title),
      content(close),
    );
  app.dialogs = [...app.dialogs, { key, view }];
  update();
  return close;
}

export const closeButton = (close, label = "Close") => h("button", { type: "button", onclick: close }, label);

/**
 * Ask for confirmation. The button is never focused by itself, and Enter in the reason does not
 * press it. With `sure`, a text, the user has to tick it first.
 * @param {{title: string, text: Tree, label: string, keep?: string, danger?: boolean, reason?: boolean, sure?: string, run: (reason?: string) => Promise<any>}} options
 */
export function confirm({ title, text, label, keep = "Close", danger = true, reason = false, sure, run }) {
  const state = formState();
  let given = "";
  let ticked = !sure;
  const act = (close) => async () => {
    if (state.busy) return;
    Object.assign(state, { busy: true, problem: "" });
    update();
    try {
      await run(given.trim() || undefined);
      close();
    } catch (error) {
      state.problem = error.message;
    } finally {
      state.busy = false;
      update();
    }
  };
  dialog(title, (close) => [
    h("p", {}, text),
    reason &&
    field(
      state,
      "Reason (optional)",
      input("reason", { maxlength: 1000, oninput: (event) => (given = event.target.value) }),
    ),
    sure && sureBox(sure, ticked, (now) => (ticked = now)),
    state.problem && h("p", { class: "problem", role: "alert" }, state.problem),
    h(
      "div",
      { class: "buttons" },
      closeButton(close, keep),
      h("button", {
        type: "button",
        class: danger ? "danger" : "primary",
        "data-destructive": danger,
        disabled: state.busy || !ticked,
        onclick: act(close),
      }, label),
    ),
  ]);
}

/** A box that enables a button with permanent consequences. */
export const sureBox = (text, ticked, change) =>
  h(
    "label",
    { class: "sure" },
    h("input", {
      type: "checkbox",
      name: "sure",
      checked: ticked,
      onchange: (event) => (change(event.target.checked), update()),
    }),
    " ",
    text,
  );
