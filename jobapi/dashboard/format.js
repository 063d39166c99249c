// Numbers and times as text.

import { h } from "./render.js";
import { app } from "./state.js";

const NUMBER = new Intl.NumberFormat("en");
/** @param {number} n */
export const number = (n) => NUMBER.format(n);
/** @param {number} n */
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

const FULL = new Intl.DateTimeFormat("en-GB", {
  day: "numeric",
  month: "short",
  year: "numeric",
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  timeZoneName: "short",
});
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric" });
const DATE = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const SECOND = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

/** The name of the viewer's time zone: "GMT+1". */
export const zone = () => FULL.formatToParts(app.now).find((part) => part.type === "timeZoneName")?.value || "";

/** A whole time with its zone. */
export const moment = (iso) => FULL.format(new Date(iso));

/** A time of this day as "14:02:11", another as "26 Nov 14:02" or with its year. */
export function brief(iso) {
  const at = new Date(iso);
  const day = DAY.format(at);
  if (day === DAY.format(app.now)) return SECOND.format(at);
  return day.slice(-4) === DAY.format(app.now).slice(-4) ? `${DATE.format(at)} ${CLOCK.format(at)}` : day;
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
  if (span * n <= 2 * 86400) return CLOCK.format(at);
  return span >= 86400 ? DATE.format(at) : `${DATE.format(at)} ${CLOCK.format(at)}`;
}

/** Local time for a datetime-local input. */
export const toLocal = (iso) => {
  const date = new Date(iso);
  if (Number.isNaN(date.getTime())) return "";
  return new Date(date.getTime() - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 19);
};
/** The UTC time of a datetime-local input. */
export const toUtc = (local) => (local ? new Date(local).toISOString().replace(/\.\d+/, "") : "");
