// Numbers and times as text.

import { h } from "./render.js";
import { app } from "./state.js";

// By hand, because the first use of Intl takes a tenth of the time in which a page appears.

/** @param {number} n */
export const number = (n) => String(n).replace(/\B(?=(\d{3})+$)/g, ",");
export const count = (n, one, many = `${one}s`) => `${number(n)} ${n === 1 ? one : many}`;

const UNITS = /** @type {[string, number][]} */ ([["d", 86400], ["h", 3600], ["min", 60], ["s", 1]]);

/** A duration with its two largest units: "2 h 5 min". @param {number|null|undefined} seconds */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1 && seconds > 0) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10 && !Number.isInteger(seconds)) return `${seconds.toFixed(1)} s`;
  let rest = Math.max(0, Math.round(seconds));
  const parts = [];
  for (const [name, size] of UNITS) {
    if (rest >= size || (name === "s" && !parts.length)) parts.push(`${Math.floor(rest / size)} ${name}`);
    rest %= size;
  }
  return parts.slice(0, 2).filter((part, i) => !i || !part.startsWith("0 ")).join(" ");
}

const seconds = (from, to) => (Date.parse(to) - Date.parse(from)) / 1000;

/** The time between two times of the API, which have whole seconds. */
export const ran = (from, to) => (from === to ? "< 1 s" : duration(seconds(from, to)));
/** The time since a time of the API. */
export const running = (from) => duration(Math.max(0, Math.floor((app.now - Date.parse(from)) / 1000)));

export function ago(iso) {
  const past = Math.round((app.now - Date.parse(iso)) / 1000);
  const size = Math.abs(past);
  if (size < 5) return "now";
  // Only the largest unit, so that a column of times is easy to read.
  const [name, length] = UNITS.find(([, length]) => size >= length) || UNITS[3];
  const text = `${Math.floor(size / length)} ${name}`;
  return past < 0 ? `in ${text}` : `${text} ago`;
}

const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const two = (n) => String(n).padStart(2, "0");
const date = (at) => `${at.getDate()} ${MONTHS[at.getMonth()]}`;
const clock = (at) => `${two(at.getHours())}:${two(at.getMinutes())}`;
const second = (at) => `${clock(at)}:${two(at.getSeconds())}`;

/** The viewer's time zone at a time, by default now: "UTC+1". */
export function zone(at = new Date(app.now)) {
  const minutes = -at.getTimezoneOffset();
  const size = Math.abs(minutes);
  if (!size) return "UTC";
  return `UTC${minutes < 0 ? "−" : "+"}${Math.floor(size / 60)}${size % 60 ? `:${two(size % 60)}` : ""}`;
}

/** A whole time with its zone: "26 Nov 2026, 14:02:11 UTC+1". */
export function moment(iso) {
  const at = new Date(iso);
  return `${date(at)} ${at.getFullYear()}, ${second(at)} ${zone(at)}`;
}

/** A time of this day as "14:02:11", another as "26 Nov 14:02" or with its year. */
export function brief(iso) {
  const at = new Date(iso);
  const now = new Date(app.now);
  if (at.toDateString() === now.toDateString()) return second(at);
  return at.getFullYear() === now.getFullYear() ? `${date(at)} ${clock(at)}` : `${date(at)} ${at.getFullYear()}`;
}

/** For a table whose heading names the zone: absolute, then relative. */
export const time = (iso) =>
  iso ? h("time", { datetime: iso, title: moment(iso) }, brief(iso), " ", h("span", { class: "hint" }, ago(iso))) : "–";

/** For running text and facts: the whole time with its zone, then relative. */
export const wholeTime = (iso) =>
  iso ? h("time", { datetime: iso }, moment(iso), " ", h("span", { class: "hint" }, ago(iso))) : "–";

/** The text of a point on a time axis, from the length of an interval and their number. */
export function axisTime(iso, span, n) {
  if (!iso) return "";
  const at = new Date(iso);
  if (span * n <= 2 * 86400) return clock(at);
  return span >= 86400 ? date(at) : `${date(at)} ${clock(at)}`;
}

/** Local time for a datetime-local input. */
export const toLocal = (iso) => {
  const date = new Date(iso);
  if (Number.isNaN(date.getTime())) return "";
  return new Date(date.getTime() - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 19);
};
/** The UTC time of a datetime-local input. */
export const toUtc = (local) => (local ? new Date(local).toISOString().replace(/\.\d+/, "") : "");
