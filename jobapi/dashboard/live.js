// Live data: polling, and the stream of a workspace's events, which all tabs share.

import { ask, Away, HOME, workspacePath } from "./api.js";
import { app, say, update } from "./state.js";

const WAKE = new EventTarget();
export const wake = (target = WAKE) => target.dispatchEvent(new Event("wake"));
addEventListener("online", () => wake());
addEventListener("offline", () => trouble(new Away()));
document.addEventListener("visibilitychange", () => document.hidden || wake());

/**
 * Sleep. A "wake" event (online again, page visible, "Try now") or one on `bell` ends it early.
 * @param {number} ms
 * @param {AbortSignal} signal
 */
export function pause(ms, signal, bell = new EventTarget()) {
  return new Promise((resolve) => {
    const listened = /** @type {[EventTarget, string][]} */ ([[WAKE, "wake"], [bell, "wake"], [signal, "abort"]]);
    const done = () => {
      clearTimeout(timer);
      listened.forEach(([target, name]) => target.removeEventListener(name, done));
      resolve(undefined);
    };
    const timer = setTimeout(done, ms);
    listened.forEach(([target, name]) => target.addEventListener(name, done));
    if (signal.aborted) done();
  });
}

async function visible(signal) {
  while (document.hidden && !signal.aborted) await pause(60_000, signal);
}

/** Show an error in the banner until `fine`. */
export function trouble(error) {
  app.trouble = error instanceof Away ? error.message : `${error.message} (${error.status || "error"})`;
  update();
}

export function fine() {
  if (app.trouble === null) return;
  app.trouble = null;
  say("The service is back.");
}

/** Note that the page has current data. */
export function heard() {
  app.heard = Date.now();
  update();
}

// The delay before the next try, in milliseconds: Retry-After or exponential, with jitter.
export const backoff = (failures, error) =>
  (error?.retryAfter ? Math.min(error.retryAfter, 60) * 1000 : Math.min(15_000, 1000 * 2 ** failures)) *
  (0.75 + Math.random() / 2);

/**
 * Call `read` every `ms` milliseconds while the page is visible. It may return another delay for
 * once, or null if it made no request. An error is shown in the banner until a call succeeds.
 * @param {number} ms
 * @param {AbortSignal} signal
 * @param {() => Promise<number|null|void>} read
 */
export async function every(ms, signal, read, bell = new EventTarget()) {
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
      // A login session that has ended has its own dialog; after it the page goes on.
      if (signal.aborted || error.status === 401) return;
      if (!error.status && !(error instanceof Away)) throw error;
      trouble(error);
      wait = backoff(++failures, error);
    }
  }
}

const SILENT = 10_000;
const CHECK = 1000;

/**
 * Keep a page up to date with the events of its workspace. `events` gets new ones. `read` reads
 * the page's data again: when the stream has begun (events before it may have been missed), when
 * the page has heard nothing for ten seconds, whatever the reason, and when the returned function
 * is called; at most once in `rest` milliseconds.
 * @param {string} id the workspace
 * @param {AbortSignal} signal
 * @param {{events: (events: any[]) => void, read: () => Promise<any>, rest?: number}} page
 * @returns {() => void}
 */
export function follow(id, signal, { events, read, rest = 1000 }) {
  const bell = new EventTarget();
  let due = false;
  let last = Date.now();
  heard();
  const again = () => {
    due = true;
    wake(bell);
  };
  every(CHECK, signal, async () => {
    const now = Date.now();
    if (!due && now - app.heard < SILENT) return null;
    if (now - last < rest) return rest - (now - last);
    due = false;
    last = now;
    try {
      await read();
    } catch (error) {
      due = true;
      throw error;
    }
    heard();
  }, bell);
  subscribe(id, signal, {
    begun: again,
    events: (found) => {
      heard();
      if (found.some((event) => event.kind.startsWith("workspace_"))) document.dispatchEvent(new Event("workspace"));
      events(found);
    },
  });
  return again;
}

// The stream of a workspace. Of all visible tabs one has it, the one that holds the lock, and
// passes the events on. So a browser has one connection for it, of the six to a service that
// HTTP/1.1 has. Without secure context there are no locks, and each tab has its own stream.

const HIDDEN = 20_000;
const SILENCE = 45_000;
const LINGER = 3000;

/** @type {Map<string, Feed>} */
const feeds = new Map();

function subscribe(id, signal, subscriber) {
  const feed = feeds.get(id) || new Feed(id);
  feeds.set(id, feed);
  feed.subscribers.add(subscriber);
  signal.addEventListener("abort", () => {
    feed.subscribers.delete(subscriber);
    // The next page usually follows the same workspace.
    setTimeout(() => {
      if (feed.subscribers.size || feeds.get(id) !== feed) return;
      feeds.delete(id);
      feed.close();
    }, LINGER);
  });
}

class Feed {
  constructor(id) {
    this.id = id;
    this.subscribers = new Set();
    this.last = null;
    this.stop = new AbortController();
    this.tabs = new BroadcastChannel(`jobapi events ${HOME} ${id}`);
    this.tabs.addEventListener("message", ({ data }) => this.receive(data));
    this.run();
  }

  close() {
    this.stop.abort();
    this.tabs.close();
  }

  receive({ last, events, begun }) {
    if (last) this.last = last;
    for (const subscriber of this.subscribers) {
      if (begun) subscriber.begun();
      if (events?.length) subscriber.events(events);
    }
  }

  pass(message) {
    this.tabs.postMessage(message);
    this.receive(message);
  }

  async run() {
    const { signal } = this.stop;
    for (let failures = 0; !signal.aborted; failures++) {
      await visible(signal);
      if (signal.aborted) return;
      const leave = new AbortController();
      const ended = AbortSignal.any([signal, leave.signal]);
      const release = whenHidden(() => leave.abort());
      const began = Date.now();
      let retryAfter = null;
      const stream = async () => {
        retryAfter = await this.stream(leave, ended);
      };
      try {
        if (navigator.locks) {
          await navigator.locks.request(`jobapi events ${HOME} ${this.id}`, { signal: ended }, stream);
        } else await stream();
      } catch {
        // Aborted, or no connection: polling meets the same error and shows it.
      }
      release();
      if (signal.aborted) return;
      // A stream that lasted for a while is no failure.
      if (Date.now() - began > 5000) failures = 0;
      if (!document.hidden) await pause(backoff(failures, { retryAfter }), signal);
    }
  }

  async stream(leave, signal) {
    const response = await ask("GET", workspacePath(this.id, "/events/stream"), {
      lasting: true,
      signal,
      headers: this.last ? { "Last-Event-ID": this.last } : {},
    });
    if (!response.ok) {
      // The id is invalid, for example because the database was restored from a backup.
      if (response.status === 422) this.last = null;
      await response.body?.cancel();
      return Number(response.headers.get("Retry-After")) || 30;
    }
    this.pass({ begun: true });
    let timer;
    const alive = () => {
      clearTimeout(timer);
      timer = setTimeout(() => leave.abort(), SILENCE);
    };
    alive();
    try {
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return null;
        alive();
        const parts = (rest + value).split("\n\n");
        rest = parts.pop();
        const found = parts.map(parseEvent);
        const last = found.map((each) => each.id).filter(Boolean).at(-1);
        const events = found.map((each) => each.data).filter(Boolean);
        if (last || events.length) this.pass({ last, events });
      }
    } finally {
      clearTimeout(timer);
    }
  }
}

// Call `then` when the tab has been hidden for a while. Returns the function that ends this.
function whenHidden(then) {
  let timer;
  const changed = () => {
    clearTimeout(timer);
    if (document.hidden) timer = setTimeout(then, HIDDEN);
  };
  document.addEventListener("visibilitychange", changed);
  changed();
  return () => {
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", changed);
  };
}

function parseEvent(text) {
  const found = { id: null, data: "" };
  for (const line of text.split("\n")) {
    if (line.startsWith("id: ")) found.id = line.slice(4);
    if (line.startsWith("data: ")) found.data += line.slice(6);
  }
  return { id: found.id, data: found.data ? JSON.parse(found.data) : null };
}
