// Access to the API: the login session, requests and their errors.

const page = document.documentElement.dataset;

export const HOME = page.home;
export const HOST_LOGIN = page.login === "host";
const API = HOME.slice(0, -"/dashboard".length);
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

// The login session. All tabs of the browser have the same one. It is in their sessionStorage and
// nowhere else, so it ends with the last tab; a new tab asks the others for it. The page's
// Content-Security-Policy allows no foreign script that could read it.

const STORE = "jobapi";
const NAME = `jobapi session ${HOME}`;
const tabs = new BroadcastChannel(NAME);

let session = JSON.parse(sessionStorage.getItem(STORE) || "null");
let held = null;
// Which tabs there are is asked while the other modules are still read.
let locks = session ? null : navigator.locks?.query();

export const loggedIn = () => HOST_LOGIN || session !== null;
export const byKey = () => Boolean(session?.key);

function keep(value) {
  session = value;
  if (value) sessionStorage.setItem(STORE, JSON.stringify(value));
  else sessionStorage.removeItem(STORE);
  hold();
}

// A tab with a session holds a lock, so that a new tab knows whether to wait for an answer.
function hold() {
  if (session && !held && navigator.locks) {
    held = new Promise((release) =>
      navigator.locks.request(NAME, { mode: "shared" }, () => new Promise((end) => release(end)))
    );
  } else if (!session && held) {
    held.then((end) => end());
    held = null;
  }
}

tabs.addEventListener("message", ({ data }) => {
  if (data.asked && session) tabs.postMessage({ session });
  else if (data.session) {
    // From the tab that has logged in or refreshed the tokens, or an answer to a new tab.
    const newer = !session || (data.session.user === session.user && data.session.until > session.until);
    if (newer) keep(data.session);
    document.dispatchEvent(new CustomEvent("session", { detail: newer }));
  } else if (data.ended && session) {
    // The user has logged out in another tab: nothing of the session stays on this page either.
    keep(null);
    location.reload();
  }
});

/** Adopt the session of the other tabs, if this one has none. */
export async function adopt() {
  hold();
  if (!HOST_LOGIN && !session) await askTabs();
}

/** Ask the other tabs for their session, and wait for an answer if there are any. */
async function askTabs() {
  if (navigator.locks) {
    const found = await (locks || navigator.locks.query());
    locks = null;
    const others = found.held.filter((lock) => lock.name === NAME).length - (session ? 1 : 0);
    if (others < 1) return;
  }
  await new Promise((resolve) => {
    setTimeout(resolve, 400);
    document.addEventListener("session", resolve, { once: true });
    tabs.postMessage({ asked: true });
  });
}

function begin(made) {
  keep(made);
  tabs.postMessage({ session });
}

const tokens = (answer, user) => ({
  user,
  access: answer.access_token,
  refresh: answer.refresh_token,
  until: Date.now() + answer.expires_in * 1000,
});

export async function logIn(username, password) {
  begin(tokens(await call("POST", "/auth/login", { body: { username, password }, open: true }), username));
}

export async function logInByKey(key) {
  await call("GET", "/workspace?limit=1", { open: true, headers: { Authorization: `Bearer ${key}` } });
  begin({ key, user: key.slice(0, 8), until: 0 });
}

export async function logOut() {
  if (session?.access) await call("POST", "/auth/logout").catch(() => {});
  keep(null);
  tabs.postMessage({ ended: true });
}

export const forget = () => keep(null);

let refreshing = null;

// Concurrent requests share one refresh, and so do tabs: a refresh token that was used ends the
// login session when it is used again later.
function refresh() {
  const old = session.refresh;
  refreshing ??= alone(async () => {
    await askTabs();
    if (session?.refresh !== old) return;
    const response = await send("POST", "/auth/refresh", { headers: { Authorization: `Bearer ${old}` } });
    begin(tokens(await answerOf(response), session.user));
  }).finally(() => {
    refreshing = null;
  });
  return refreshing;
}

const alone = (run) => (navigator.locks ? navigator.locks.request(`${NAME} refresh`, run) : run());

// Requests

/**
 * @typedef {object} Options
 * @property {Record<string, string>} [headers]
 * @property {any} [body] sent as JSON
 * @property {AbortSignal} [signal]
 * @property {boolean} [lasting] without a timeout: a stream
 * @property {boolean} [open] without the session's token
 */

/**
 * @param {string} method
 * @param {string} path
 * @param {Options} [options]
 */
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

/**
 * Send a request with the session's token.
 * @param {string} method
 * @param {string} path
 * @param {Options} [options]
 */
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
  if (response.status === 401 && !options.open) {
    document.dispatchEvent(new CustomEvent("ended", { detail: await problemOf(response.clone()) }));
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

/**
 * The body of the response. Throws a Problem or Away.
 * @param {string} method
 * @param {string} path
 * @param {Options} [options]
 */
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

// Newer than the types of the checker, and than some browsers.
const { rawJSON, isRawJSON } = /** @type {any} */ (JSON);

/** Whether a value is an integer beyond 2^53, as `parse` keeps it. */
export const isRaw = (value) => Boolean(isRawJSON?.(value));

/** Like JSON.parse, but integers beyond 2^53 keep their digits. */
export function parse(text) {
  return JSON.parse(
    text,
    (_key, value, context) =>
      Number.isInteger(value) && !Number.isSafeInteger(value) && context?.source && rawJSON
        ? rawJSON(context.source)
        : value,
  );
}

// A random idempotency key.
export const newKey = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (n) => n.toString(16).padStart(2, "0")).join("");

export const workspacePath = (id, rest = "") => `/workspace/${id}${rest}`;
export const jobPath = (id, job, rest = "") => `/workspace/${id}/jobs/${encodeURIComponent(job)}${rest}`;
