// Live updates: polling, and the stream of events.

import { ask, Away, workspacePath } from "./api.js";
import { h, say } from "./dom.js";

const WAKE = new EventTarget();
const wake = (target = WAKE) => target.dispatchEvent(new Event("wake"));
addEventListener("online", () => wake());
document.addEventListener("visibilitychange", () => document.hidden || wake());

// Sleep. A "wake" event on WAKE (online again, page visible, "Try now") or on `bell` ends it early.
export function pause(ms, signal, bell = new EventTarget()) {
  return new Promise((resolve) => {
    const listened = [[WAKE, "wake"], [bell, "wake"], [signal, "abort"]];
    const done = () => {
      clearTimeout(timer);
      listened.forEach(([target, name]) => target.removeEventListener(name, done));
      resolve();
    };
    const timer = setTimeout(done, ms);
    listened.forEach(([target, name]) => target.addEventListener(name, done));
    if (signal.aborted) done();
  });
}

async function visible(signal) {
  while (document.hidden && !signal.aborted) await pause(60_000, signal);
}

// The banner

const banner = document.getElementById("trouble");

export function trouble(error) {
  const text = error instanceof Away ? error.message : `${error.message} (${error.status || "error"})`;
  if (banner.dataset.text === text) return;
  banner.dataset.text = text;
  banner.replaceChildren(
    h("p", {}, h("strong", {}, text), " This page may be out of date. Retrying automatically."),
    h("button", { type: "button", onclick: () => wake() }, "Try now"),
  );
}

export function fine() {
  if (!banner.dataset.text) return;
  delete banner.dataset.text;
  banner.replaceChildren();
  say("The service is back.");
}

addEventListener("offline", () => trouble(new Away()));

// The delay before the next try, in milliseconds: Retry-After or exponential, with jitter.
export const backoff = (failures, error) =>
  (error?.retryAfter ? Math.min(error.retryAfter, 60) * 1000 : Math.min(15_000, 1000 * 2 ** failures)) * (0.75 + Math.random() / 2);

// Call `read` every `ms` milliseconds while the page is visible. It may return another
// delay for once, or null if it made no request. An error is shown in the banner until
// a call succeeds.
export async function every(ms, signal, read, bell) {
  let failures = 0;
  let wait = ms;
  for (;;) {
    await pause(wait, signal, bell);
    await visible(signal);
    if (signal.aborted) return;
    try {
      const next = await read();
      if (signal.aborted) return;
      if (next !== null) fine();
      wait = next || ms;
      failures = 0;
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 401) {
        document.dispatchEvent(new CustomEvent("ended", { detail: error }));
        return;
      }
      if (!error.status && !(error instanceof Away)) throw error;
      trouble(error);
      wait = backoff(++failures, error);
    }
  }
}

// Follow the event stream of a workspace. `events` gets new events. `read` is called when
// the stream begins, every few seconds while there is no stream, and when the returned
// function is called.

const POLL = 5000;
const SILENCE = 45_000;
const HIDDEN = 20_000;

export function follow(id, query, signal, { events, read }) {
  let open = false;
  let last = null;
  let due = false;
  const bell = new EventTarget();
  const again = () => {
    due = true;
    wake(bell);
  };

  every(POLL, signal, async () => {
    if (open && !due) return null;
    due = false;
    try {
      await read();
    } catch (error) {
      due = true;
      throw error;
    }
    return due ? 1 : POLL;
  }, bell);

  (async () => {
    for (let failures = 0; !signal.aborted; failures++) {
      await visible(signal);
      if (signal.aborted) return;
      const stop = new AbortController();
      let error = null;
      try {
        const response = await ask("GET", workspacePath(id, `/events/stream${query}`), {
          lasting: true,
          signal: AbortSignal.any([signal, stop.signal]),
          headers: last ? { "Last-Event-ID": last } : {},
        });
        if (response.ok) {
          open = true;
          // Events between the reading of the view and the begin of the stream were missed.
          again();
          const began = Date.now();
          await listen(response.body, stop, (found) => {
            last = found.at(-1).id || last;
            events(found.map((event) => event.data));
          });
          // A stream that lasted for a while is no failure.
          if (Date.now() - began > 5000) failures = 0;
        } else {
          // The id is invalid, for example because the database was restored from a backup.
          if (response.status === 422) last = null;
          error = { retryAfter: Number(response.headers.get("Retry-After")) || 30 };
          await response.body?.cancel();
        }
      } catch {
        // Polling meets the same error and shows it.
      }
      if (open && !signal.aborted) {
        open = false;
        again();
      }
      await pause(backoff(failures, error), signal);
    }
  })();
  return again;
}

async function listen(body, stop, events) {
  let timer;
  const alive = () => {
    clearTimeout(timer);
    timer = setTimeout(() => stop.abort(), SILENCE);
  };
  // Browsers limit the connections per service, so a hidden page closes its stream.
  let hidden;
  const onVisibility = () => {
    clearTimeout(hidden);
    if (document.hidden) hidden = setTimeout(() => stop.abort(), HIDDEN);
  };
  document.addEventListener("visibilitychange", onVisibility);
  onVisibility();
  alive();
  try {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      alive();
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      const found = parts.map(parseEvent).filter(Boolean);
      if (found.length) events(found);
    }
  } finally {
    clearTimeout(timer);
    clearTimeout(hidden);
    document.removeEventListener("visibilitychange", onVisibility);
  }
}

function parseEvent(text) {
  const found = { id: null, data: "" };
  for (const line of text.split("\n")) {
    if (line.startsWith("id: ")) found.id = line.slice(4);
    if (line.startsWith("data: ")) found.data += line.slice(6);
  }
  return found.data ? { id: found.id, data: JSON.parse(found.data) } : null;
}

// Throttle: `run` at most once per `ms` milliseconds, and once more after the last call.
export function seldom(ms, signal, run) {
  let timer = null;
  let last = 0;
  return () => {
    timer ??= setTimeout(
      () => {
        timer = null;
        last = Date.now();
        if (!signal.aborted) run();
      },
      Math.max(250, last + ms - Date.now()),
    );
  };
}
