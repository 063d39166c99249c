// Elements, formats and forms that the views share. Values from the API become text
// nodes or attributes, never markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, properties, children) {
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value" && node.tagName !== "INPUT") node.value = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const h = (tag, properties, ...children) => fill(document.createElement(tag), properties, children);
export const s = (tag, properties, ...children) => fill(document.createElementNS(SVG, tag), properties, children);

// Announce a change to screen readers.
export function say(text) {
  document.getElementById("said").textContent = text;
}

// Numbers and times

const NUMBER = new Intl.NumberFormat("en");
export const number = (n) => NUMBER.format(n);
export const count = (n, one, many = `${one}s`) => `${number(n)} ${n === 1 ? one : many}`;

const UNITS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1 && seconds > 0) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10 && !Number.isInteger(seconds)) return `${seconds.toFixed(1)} s`;
  let rest = Math.round(seconds);
  const parts = [];
  for (const [name, size] of UNITS) {
    if (rest >= size || (name === "s" && !parts.length)) parts.push(`${Math.floor(rest / size)} ${name}`);
    rest %= size;
  }
  return parts.slice(0, 2).join(" ");
}

// The time between two timestamps of the API, which have whole seconds.
export const ran = (from, to) => (from === to ? "< 1 s" : duration((Date.parse(to) - Date.parse(from)) / 1000));

const WHOLE = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });
export const moment = (iso) => WHOLE.format(new Date(iso));

function ago(iso) {
  const seconds = Math.round((Date.now() - Date.parse(iso)) / 1000);
  const size = Math.abs(seconds);
  if (size < 5) return "now";
  // Only the largest unit, so that a column of times is easy to read.
  const [name, length] = UNITS.find(([, length]) => size >= length);
  const text = `${Math.floor(size / length)} ${name}`;
  return seconds < 0 ? `in ${text}` : `${text} ago`;
}

// A time as "5 min ago", kept up to date.
export const since = (iso) =>
  iso ? h("time", { datetime: iso, title: moment(iso), class: "ago" }, ago(iso)) : h("span", {}, "–");

setInterval(() => {
  for (const node of document.querySelectorAll("time.ago")) {
    const text = ago(node.dateTime);
    if (node.textContent !== text) node.textContent = text;
  }
}, 5000);

// Convert between a datetime-local input, in local time, and the API, in UTC.
export const toLocal = (iso) => {
  const date = new Date(iso);
  if (Number.isNaN(date.getTime())) return "";
  return new Date(date.getTime() - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 19);
};
export const toUtc = (local) => (local ? new Date(local).toISOString().replace(/\.\d+/, "") : "");

// The API's enumerations

export const ROLES = ["viewer", "worker", "member", "owner"];
export const STATUSES = ["pending", "running", "success", "failed", "cancelled"];
export const PRIORITIES = ["low", "normal", "high", "urgent"];

// The event kinds about jobs, with their names in a job's history.
export const JOB_EVENTS = {
  created: "Created",
  started: "Started by hand",
  claimed: "Claimed",
  progressed: "Progress",
  succeeded: "Succeeded",
  failed: "Failed",
  retried: "Queued again for a retry",
  lease_expired: "Lease expired",
  cancelled: "Cancelled",
  edited: "Edited",
  released: "Released by the worker",
  deleted: "Deleted",
  timed_out: "Timed out",
};

export const badge = (status) => h("span", { class: `badge ${STATUSES.includes(status) ? status : ""}` }, status);

export function bar(percent, message) {
  const value = Math.min(100, Math.max(0, percent || 0));
  return h(
    "span",
    { class: "bar" },
    h("progress", { max: 100, value, "aria-label": "Progress" }),
    h("span", {}, `${value} %`),
    message && h("span", { class: "message", title: message, dir: "auto" }, message),
  );
}

// Forms

let fields = 0;

// An input with its label, hint and error message.
export function field(label, input, hint) {
  input.id ||= `field-${++fields}`;
  const wrong = h("p", { class: "wrong", id: `${input.id}-wrong` });
  const below = hint && h("p", { class: "hint", id: `${input.id}-hint` }, hint);
  input.setAttribute("aria-describedby", [below && below.id, wrong.id].filter(Boolean).join(" "));
  return h("div", { class: "field" }, h("label", { for: input.id }, label), input, below, wrong);
}

export const select = (properties, options, chosen) =>
  h(
    "select",
    properties,
    options.map((option) => {
      const [value, text] = Array.isArray(option) ? option : [option, option];
      return h("option", { value, selected: value === chosen }, text);
    }),
  );

// Show the messages of an error at the fields, and the rest in the form's alert.
export function showProblem(form, error) {
  form.querySelectorAll("[aria-invalid]").forEach((input) => input.removeAttribute("aria-invalid"));
  form.querySelectorAll(".wrong").forEach((node) => node.replaceChildren());
  const rest = [];
  for (const [name, messages] of Object.entries(error?.errors || {})) {
    const input = form.elements[name] || form.elements[name.split(".")[0]];
    const below = input?.id && form.querySelector(`#${CSS.escape(input.id)}-wrong`);
    if (!below) rest.push(`${name}: ${messages.join(" ")}`);
    else {
      input.setAttribute("aria-invalid", "true");
      input.closest("details")?.setAttribute("open", "");
      below.append(`${name.includes(".") ? `${name}: ` : ""}${messages.join(" ")}`);
    }
  }
  const general = form.querySelector(".problem");
  if (error && !Object.keys(error.errors || {}).length) rest.push(error.message);
  general.textContent = rest.join(" ");
  form.querySelector("[aria-invalid]")?.focus();
}

// A form whose button is disabled while it is sent. Errors of `send` are shown in it.
export function form(properties, body, label, send) {
  const button = h("button", { class: "primary" }, label);
  const node = h(
    "form",
    {
      novalidate: true,
      ...properties,
      onsubmit: async (event) => {
        event.preventDefault();
        if (button.disabled) return;
        button.disabled = true;
        try {
          showProblem(node, null);
          await send(node.elements, node);
        } catch (error) {
          showProblem(node, error);
        } finally {
          button.disabled = false;
        }
      },
    },
    body,
    h("p", { class: "problem", role: "alert" }),
    h("div", { class: "buttons" }, button),
  );
  return node;
}

export const cancelButton = () =>
  h("button", { type: "button", onclick: (event) => event.target.closest("dialog").close() }, "Close");

// A modal dialog. `closed` is called after it is closed in any way.
export function dialog(title, content, closed) {
  const opener = document.activeElement;
  const heading = h("h2", { id: "dialog-title" }, title);
  const node = h("dialog", { "aria-labelledby": "dialog-title" }, heading, content);
  node.addEventListener("close", () => {
    node.remove();
    if (opener?.isConnected) opener.focus();
    closed?.();
  });
  document.body.append(node);
  node.showModal();
  return node;
}

// Ask for confirmation. `run` gets the reason, if there is one; its errors are shown.
export function confirm(title, text, label, run, { reason } = {}) {
  const input = reason && h("input", { name: "reason", maxlength: 1000, autocomplete: "off" });
  const node = form({}, [h("p", {}, text), input && field("Reason (optional)", input)], label, async (fields) => {
    await run(fields.reason?.value.trim() || undefined);
    box.close();
  });
  node.querySelector(".buttons").append(cancelButton());
  const box = dialog(title, node);
  return box;
}

export function rows(headings, body, properties) {
  return h(
    "table",
    { role: "table", ...properties },
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, headings.map((text) => h("th", { role: "columnheader", scope: "col" }, text)))),
    h("tbody", { role: "rowgroup" }, body),
  );
}

export const cell = (label, ...content) => h("td", { role: "cell", "data-label": label }, content);

// Formatted JSON; a long one is cut and can be saved.
const MOST = 200_000;

export function json(value, name) {
  if (value === null || value === undefined) return h("p", { class: "none" }, "None");
  const text = JSON.stringify(value, null, 2);
  if (text.length <= MOST) return h("pre", { tabindex: 0, dir: "auto" }, text);
  const save = h("button", { type: "button", onclick: () => download(text, name) }, `Download all ${number(text.length)} characters`);
  return h("div", {}, h("p", {}, `The first ${number(MOST)} characters. `, save), h("pre", { tabindex: 0, dir: "auto" }, `${text.slice(0, MOST)}…`));
}

function download(text, name) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
