// Access to the API: the login session, requests and their errors.

const page = document.documentElement.dataset;

export const HOME = page.home;
export const HOST_LOGIN = page.login === "host";
const API = HOME.slice(0, -"/dashboard".length);
const STORE = "jobapi";
const TIMEOUT = 30_000;

// An error response. Its message is the `detail` of the problem.
export class Problem extends Error {
  constructor(status, body, retryAfter) {
    super(body?.detail || `The service responded with status ${status}.`);
    this.status = status;
    this.errors = body?.errors || {};
    this.retryAfter = retryAfter;
  }
  // Whether the same request may succeed later.
  get passing() {
    return this.status >= 500 || this.status === 429;
  }
}

// No response.
export class Away extends Error {
  constructor() {
    super(navigator.onLine ? "The service does not respond." : "You are offline.");
    this.passing = true;
  }
}

// The login session. It is in the tab's sessionStorage: it ends with the tab, and the
// page's Content-Security-Policy allows no foreign script that could read it.

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

// A duplicated tab has the same session. Using a refresh token that another tab has
// exchanged would end it, so tabs share new tokens.
const tabs = new BroadcastChannel(STORE);
tabs.addEventListener("message", ({ data }) => {
  if (session?.refresh === data.old) keep(data.now);
});

let refreshing = null;

// Concurrent requests share one refresh.
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

// Send a request with the session's token. `lasting` requests, such as streams, have no timeout.
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

// After a failed refresh the request is sent with the old token, and its error is shown.
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
    // Not from the service: a proxy, for example.
  }
  if (!response.ok) throw new Problem(response.status, body, Number(response.headers.get("Retry-After")) || null);
  return body;
}

// The body of the response. Throws a Problem or Away.
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

// Integers beyond 2^53 keep their digits.
export function parse(text) {
  return JSON.parse(text, (key, value, context) =>
    Number.isInteger(value) && !Number.isSafeInteger(value) && context?.source && JSON.rawJSON
      ? JSON.rawJSON(context.source)
      : value,
  );
}

// A random idempotency key.
export const newKey = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (n) => n.toString(16).padStart(2, "0")).join("");

export const workspacePath = (id, rest = "") => `/workspace/${id}${rest}`;
export const jobPath = (id, job, rest = "") => `/workspace/${id}/jobs/${encodeURIComponent(job)}${rest}`;

// The usernames of a workspace's members by user id, cached.
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
