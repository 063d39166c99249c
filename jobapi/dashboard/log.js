// The log of a job: read when it is opened, the newest entries first, and followed while the job
// runs. It asks again from where it was, so no request waits for entries.

import { get } from "./api.js";
import { colored } from "./ansi.js";
import { brief, count, moment } from "./format.js";
import { every, wake } from "./live.js";
import { empty, ENDED, select } from "./parts.js";
import { h } from "./render.js";
import { update } from "./state.js";

const FOLLOW = 800;
const PAGE = 200;
const EARLIER = 1000;
const KEPT = 10_000;
const LEVELS = /** @type {[string, string][]} */ ([
  ["debug", "All levels"],
  ["info", "Info and above"],
  ["warning", "Warnings and errors"],
  ["error", "Errors"],
]);

/**
 * @param {{path: string, signal: AbortSignal, status: () => string|null}} options the path of the
 *   log, and the job's status; null if the job was deleted
 */
export function jobLog({ path, signal, status }) {
  const state = {
    open: false,
    level: "debug",
    /** The entries, oldest first. @type {any[]|null} */
    entries: null,
    /** Where earlier entries begin, and later ones. @type {string|null} */
    earlier: null,
    tail: "",
    dropped: 0,
    problem: "",
    busy: false,
  };
  const bell = new EventTarget();
  // Whether all is read of a job that has ended.
  let whole = false;
  // Answers to another filter are dropped.
  let asked = 0;
  /** @type {Element|null} */
  let box = null;
  // Whether the end is in view, and stays there.
  let atEnd = true;

  const read = (query) => get(`${path}?level=${state.level}&${query}`, { signal });

  async function begin() {
    const mine = ++asked;
    const ended = ENDED.includes(status() || "");
    state.entries = null;
    state.problem = "";
    update();
    try {
      const found = await read(`order=desc&limit=${PAGE}`);
      if (mine !== asked) return;
      state.entries = found.data.reverse();
      state.earlier = found.pagination.next_cursor;
      state.tail = found.pagination.tail_cursor;
      state.dropped = found.dropped;
      whole = ended;
      atEnd = true;
      shown();
      wake(bell);
    } catch (error) {
      if (signal.aborted || mine !== asked) return;
      state.problem = error.message;
      update();
    }
  }

  async function earlier() {
    const mine = asked;
    state.busy = true;
    update();
    try {
      const found = await read(`order=desc&limit=${EARLIER}&cursor=${encodeURIComponent(state.earlier || "")}`);
      if (mine !== asked) return;
      state.entries = [...found.data.reverse(), ...(state.entries || [])];
      state.earlier = found.pagination.next_cursor;
      state.dropped = found.dropped;
      atEnd = false;
      shown();
    } finally {
      state.busy = false;
      update();
    }
  }

  async function later() {
    const mine = asked;
    const ended = ENDED.includes(status() || "");
    const found = await read(`order=asc&limit=${EARLIER}&cursor=${encodeURIComponent(state.tail)}`);
    if (mine !== asked || !state.entries) return;
    const more = found.pagination.next_cursor !== null;
    state.tail = found.pagination.tail_cursor;
    state.dropped = found.dropped;
    whole = ended && !more;
    if (found.data.length) {
      state.entries = [...state.entries, ...found.data].slice(-KEPT);
      shown();
    }
    return more ? 1 : undefined;
  }

  // Show the entries; the end stays in view if it was, and otherwise what was read.
  function shown() {
    const before = box ? box.scrollHeight - box.scrollTop : 0;
    const first = state.entries?.[0]?.number;
    update();
    requestAnimationFrame(() => {
      if (!box) return;
      if (atEnd) box.scrollTop = box.scrollHeight;
      else if (first !== top) box.scrollTop = box.scrollHeight - before;
      top = first;
    });
  }
  let top;

  function live(signal) {
    every(FOLLOW, signal, async () => {
      const now = status();
      if (!state.open || !state.entries || now === null || now === "pending") return null;
      if (whole && ENDED.includes(now)) return null;
      return await later();
    }, bell);
  }

  function view() {
    return h(
      "section",
      { class: "log", key: "log" },
      h("h2", {}, "Log"),
      h(
        "details",
        { open: state.open, ontoggle: toggled },
        h("summary", {}, state.open ? "Hide the log" : "Show the log"),
        state.open && content(),
      ),
    );
  }

  function toggled(event) {
    if (event.target.open === state.open) return;
    state.open = event.target.open;
    if (state.open) begin();
    else update();
  }

  function content() {
    const { entries } = state;
    return [
      h(
        "div",
        { class: "buttons" },
        h("label", { for: "log-level" }, "Level"),
        select("log-level", LEVELS, state.level, {
          id: "log-level",
          onchange: (event) => {
            state.level = event.target.value;
            begin();
          },
        }),
      ),
      state.problem && h("p", { class: "problem", role: "alert" }, state.problem),
      !entries && !state.problem && h("p", { class: "none", role: "status" }, "Reading the log …"),
      entries && !entries.length &&
      empty(
        state.level !== "debug"
          ? "No entries of this level."
          : status() === "running"
          ? "No entries yet."
          : "The job has logged nothing.",
      ),
      entries && entries.length > 0 &&
      h(
        "div",
        {
          class: "lines",
          key: "lines",
          role: "log",
          "aria-live": "off",
          "aria-label": "Log entries",
          tabindex: 0,
          mounted: (node) => (box = node),
          onscroll: (event) => {
            const { scrollHeight, scrollTop, clientHeight } = event.target;
            atEnd = scrollHeight - scrollTop - clientHeight < 30;
          },
        },
        state.earlier
          ? h(
            "button",
            { key: "earlier", type: "button", disabled: state.busy, onclick: earlier },
            "Show earlier entries",
          )
          : state.dropped > 0 &&
            h(
              "p",
              { key: "dropped", class: "hint" },
              `${count(state.dropped, "older entry is", "older entries are")} no longer kept.`,
            ),
        entries.map((entry, i) => line(entry, i > 0 ? entries[i - 1].attempt : null)),
      ),
    ];
  }

  return { view, live };
}

// The elements of each entry, which does not change.
const lines = new WeakMap();

function line(entry, before) {
  const heading = entry.attempt !== (before ?? 1);
  const known = lines.get(entry);
  if (known?.heading === heading) return known.tree;
  const tree = [
    heading && h("p", { key: `attempt-${entry.number}`, class: "hint attempt" }, `Attempt ${entry.attempt}`),
    h(
      "div",
      { key: entry.number, class: `line ${entry.level}` },
      h("time", { datetime: entry.at, title: moment(entry.at) }, brief(entry.at)),
      h("span", { class: "level" }, entry.level),
      h("span", { class: "text", dir: "auto" }, colored(entry.message)),
    ),
  ];
  lines.set(entry, { heading, tree });
  return tree;
}
