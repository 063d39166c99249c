// The one way to the API: who is logged in, requests, and what they end with.

const page = document.documentElement.dataset;

export const HOME = page.home;
export const HOST_LOGIN = page.login === "host";
const API = HOME.slice(0, -"/dashboard".length);
const STORE = "jobapi";
const TIMEOUT = 30_000;

// A refusal, as the service words it.
export class Problem extends Error {
  constructor(status, body, retryAfter) {
    super(body?.detail || `The service answered with ${status}.`);
    this.status = status;
    this.errors = body?.errors || {};
    this.kind = (body?.type || "").replace("urn:jobapi:problem:", "");
    this.retryAfter = retryAfter;
  }
  // Whether it may go well a moment later.
  get passing() {
    return this.status >= 500 || this.status === 429;
  }
}

// No answer at all.
export class Away extends Error {
  constructor() {
    super(navigator.onLine ? "The service does not answer." : "You are offline.");
    this.passing = true;
  }
}

// Who is logged in. In the tab's own storage: it is gone with the tab, and no
// other site's script can be on this page to read it.

let session = JSON.parse(sessionStorage.getItem(STORE) || "null");

export const loggedIn = () => HOST_LOGIN || session !== null;
export const byKey = () => Boolean(session?.key);

function keep(value) {
  session = value;
  if (value) sessionStorage.setItem(STORE, JSON.stringify(value));
  else sessionStorage.removeItem(STORE);
}

const tokens = (answer) => ({
  access: answer.access_token,
  refresh: answer.refresh_token,
  until: Date.now() + answer.expires_in * 1000,
});

export async function logIn(username, password) {
  keep(tokens(await call("POST", "/auth/login", { body: { username, password }, open: true })));
}

export async function logInByKey(key) {
  keep({ key });
  try {
    await call("GET", "/workspace?limit=1");
  } catch (error) {
    keep(null);
    throw error;
  }
}

export async function logOut() {
  const ended = session;
  if (ended?.access) await call("POST", "/auth/logout").catch(() => {});
  keep(null);
}

export const forget = () => keep(null);

// A duplicated tab has the same log-in, which would end if the tab used a refresh
// token that another one exchanged a while ago.
const tabs = new BroadcastChannel(STORE);
tabs.addEventListener("message", ({ data }) => {
  if (session?.refresh === data.old) keep(data.now);
});

let refreshing = null;

// Several requests may find the token old at the same moment: one refreshes it.
function refresh() {
  refreshing ??= (async () => {
    try {
      const old = session.refresh;
      const response = await send("POST", "/auth/refresh", {
        headers: { Authorization: `Bearer ${old}` },
      });
      keep(tokens(await answerOf(response)));
      tabs.postMessage({ old, now: session });
    } finally {
      refreshing = null;
    }
  })();
  return refreshing;
}

// Requests

async function send(method, path, { headers, body, signal, lasting } = {}) {
  const signals = [signal, lasting ? null : AbortSignal.timeout(TIMEOUT)].filter(Boolean);
  try {
    return await fetch(API + path, {
      method,
      headers: body === undefined ? headers : { "Content-Type": "application/json", ...headers },
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.any(signals),
      cache: "no-store",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Away();
  }
}

// A response to a request of whoever is logged in. `lasting` is for streams.
export async function ask(method, path, options = {}) {
  const current = () => session?.key || session?.access;
  if (session?.refresh && session.until < Date.now() + 20_000) await refresh().catch(passOver);
  const token = current();
  const once = (headers) => send(method, path, { ...options, headers: { ...options.headers, ...headers } });
  let response = await once(token && !options.open ? { Authorization: `Bearer ${token}` } : {});
  if (response.status === 401 && session?.refresh && !options.open) {
    if (current() === token) await refresh().catch(passOver);
    if (current() !== token) response = await once({ Authorization: `Bearer ${current()}` });
  }
  return response;
}

// A refresh that was refused leaves the old token, whose refusal is told.
function passOver(error) {
  if (error instanceof Away || error.passing) throw error;
}

async function answerOf(response) {
  if (response.status === 204 || response.status === 304) return null;
  const text = await response.text().catch(() => {
    throw new Away();
  });
  let body = null;
  try {
    body = parse(text);
  } catch {
    // Something in between has answered, in its own words.
  }
  if (!response.ok) throw new Problem(response.status, body, Number(response.headers.get("Retry-After")) || null);
  return body;
}

// What the answer holds; throws a Problem, or Away.
export async function call(method, path, options = {}) {
  return answerOf(await ask(method, path, options));
}

export const get = (path, options) => call("GET", path, options);
export const post = (path, body, options) => call("POST", path, { body, ...options });

export async function problemOf(response) {
  try {
    await answerOf(response);
  } catch (error) {
    return error;
  }
  return new Away();
}

// Numbers that JavaScript cannot hold stay as they were written.
export function parse(text) {
  return JSON.parse(text, (key, value, context) =>
    Number.isInteger(value) && !Number.isSafeInteger(value) && context?.source && JSON.rawJSON
      ? JSON.rawJSON(context.source)
      : value,
  );
}

// For one request that is to happen once, however often it is sent.
export const newKey = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (n) => n.toString(16).padStart(2, "0")).join("");

export const workspacePath = (id, rest = "") => `/workspace/${id}${rest}`;
export const jobPath = (id, job, rest = "") => `/workspace/${id}/jobs/${encodeURIComponent(job)}${rest}`;

// The names of a workspace's members by their ids, read once.
const known = new Map();
export function names(id) {
  if (!known.has(id)) {
    const read = get(workspacePath(id, "/members?limit=100"))
      .then((answer) => new Map(answer.data.map((member) => [member.user_id, member.username])))
      .catch(() => {
        known.delete(id);
        return new Map();
      });
    known.set(id, read);
  }
  return known.get(id);
}
