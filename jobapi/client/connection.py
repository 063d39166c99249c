"""Requests to one service as one caller: tokens, retries, and what a refusal raises."""

from __future__ import annotations

import html
import os
import re
import threading
from collections.abc import Iterator, Mapping
from json import JSONEncoder
from types import TracebackType
from typing import Any, Self

import httpx2
import orjson

from .. import errors
from .retries import NOT_DONE, RETRIED, Unreachable, bounds, pause, retry_after

SILENCE_SECONDS = 45.0
"""After how long a stream is given up in which nothing comes, not even the beat of every 15 s."""

# Not orjson, which writes NaN as null and dates as texts: what is no JSON is refused.
_STRICT = JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
JSON_BODY = {"Content-Type": "application/json"}
_LASTING = httpx2.Timeout(30.0, read=SILENCE_SECONDS)
_MARKUP = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.IGNORECASE | re.DOTALL)
# What a proxy says without a problem type, and the client acts on.
_KINDS = {
    kind.status: kind for kind in (errors.BodyTooLarge, errors.TooManyRequests, errors.Unavailable)
}


def written(value: Any) -> bytes:
    """A value as JSON. Raises ``TypeError`` or ``ValueError`` where it cannot be."""
    return _STRICT.encode(value).encode()


class Connection:
    """What a client needs to send any request of the API."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        username: str | None = None,
        password: str | None = None,
        timeout: float = 30.0,
        retries: int = 5,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        if (token is None) == (username is None) or (username is None) != (password is None):
            raise ValueError("Give either token, or username and password.")
        self.url = url.rstrip("/")
        self.retries = retries
        self._token = token
        self._refresh_token: str | None = None
        self._login = None if username is None else {"username": username, "password": password}
        self._lock = threading.Lock()
        self._timeout = timeout
        self._transport = transport
        self._http = self._connect()

    def _connect(self) -> httpx2.Client:
        self._process = os.getpid()
        return httpx2.Client(base_url=self.url, timeout=self._timeout, transport=self._transport)

    def forked(self) -> None:
        """Take no connection, lock or refresh token over from the parent of a forked process.

        It happens by itself with the first request of a process.
        """
        # Kept open, for its connections are the parent's.
        self._inherited = self._http
        self._lock = threading.Lock()
        if self._login is not None:
            # Used by two processes, it would end the log-in of both.
            self._refresh_token = None
        self._http = self._connect()

    def close(self) -> None:
        """Close the connections."""
        if self._process == os.getpid():
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _pages(self, path: str, params: dict[str, Any]) -> Iterator[Any]:
        while True:
            answer = self.request("GET", path, params=params)
            yield from answer["data"]
            params["cursor"] = answer["pagination"]["next_cursor"]
            if params["cursor"] is None:
                return

    def _post(
        self,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        safe: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        given = {**(headers or {}), **({} if key is None else {"Idempotency-Key": key})}
        return self.request("POST", path, json=body, headers=given, safe=safe or key is not None)

    def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        safe: bool | None = None,
    ) -> Any:
        """Any call of the API; returns what its JSON says.

        ``json`` may be bytes, which are JSON already. ``safe`` says that it may
        be sent again though it may have arrived; reading is. Raises the service's
        error as one of ``jobapi.errors``, or ``Unreachable``.
        """
        if safe is None:
            safe = method in ("GET", "HEAD", "DELETE")
        body = json if json is None or isinstance(json, bytes) else written(json)
        given = {**({} if body is None else JSON_BODY), **(headers or {})}
        return read(self._answer(method, path, body, params=params, headers=given, safe=safe))

    def _answer(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        params: Mapping[str, Any] | None,
        headers: Mapping[str, str],
        safe: bool,
        lasting: bool = False,
    ) -> httpx2.Response:
        """The last answer; one that is ``lasting`` is a stream, to be closed by the caller."""
        if self._process != os.getpid():
            self.forked()
        renewed = False
        tries = 0
        while True:
            token = self._access_token()
            sent = {**headers, "Authorization": f"Bearer {token}"}
            request = self._http.build_request(
                method,
                path,
                content=body,
                params=params,
                headers=sent,
                timeout=_LASTING if lasting else bounds().timeout(self._timeout),
            )
            try:
                response = self._http.send(request, stream=lasting)
                if lasting and response.is_success:
                    return response
                response.read()
            except httpx2.TransportError as error:
                never_sent = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
                again = tries < self.retries and (safe or never_sent)
                if not (again and pause(tries)):
                    raise Unreachable(f"{method} {self.url}{path}: {error!r}") from error
                tries += 1
                continue
            if response.status_code == 401 and not renewed and self._renew(token):
                renewed = True
                continue
            again = tries < self.retries and _is_retried(response, safe)
            if not (again and pause(tries, retry_after(response.headers))):
                return response
            tries += 1

    def _access_token(self) -> str:
        token = self._token
        if token is None:
            self._renew(None)
            token = self._token
        return str(token)

    def _renew(self, used: str | None) -> bool:
        """Get another access token, once for all threads; False where there is no way to one."""
        if self._login is None:
            return False
        with self._lock:
            if self._token != used:
                return True  # Another thread has been here meanwhile.
            tokens = self._refresh() or self._log_in()
            self._token = tokens["access_token"]
            self._refresh_token = tokens["refresh_token"]
        return True

    def _refresh(self) -> Any:
        if self._refresh_token is None:
            return None
        headers = {"Authorization": f"Bearer {self._refresh_token}"}
        response = self._send("/auth/refresh", headers=headers)
        return response.json() if response.status_code == 200 else None

    def _log_in(self) -> Any:
        return read(self._send("/auth/login", json=self._login))

    def _send(self, path: str, **kw: Any) -> httpx2.Response:
        tries = 0
        while True:
            timeout = bounds().timeout(self._timeout)
            try:
                response = self._http.post(path, timeout=timeout, **kw)
            except httpx2.TransportError as error:
                if tries >= self.retries or not pause(tries):
                    raise Unreachable(f"POST {self.url}{path}: {error!r}") from error
            else:
                again = tries < self.retries and _is_retried(response, True)
                if not (again and pause(tries, retry_after(response.headers))):
                    return response
            tries += 1


def _is_retried(response: httpx2.Response, safe: bool) -> bool:
    return response.status_code in (RETRIED if safe else NOT_DONE)


def read(response: httpx2.Response) -> Any:
    """What an answer's JSON says. Raises the service's error, or ``Unreachable`` for no JSON."""
    if response.is_success:
        try:
            return orjson.loads(response.content) if response.content else None
        except ValueError:
            # Something in front answers instead of the service.
            raise Unreachable(f"{response.request.url}: the answer is not JSON") from None
    try:
        problem = orjson.loads(response.content)
    except ValueError:
        problem = None
    if not isinstance(problem, dict) or "type" not in problem:
        # Not from the service: a proxy in front, or another server.
        kind = _KINDS.get(response.status_code, errors.JobApiError)
        problem = {"type": kind.type_name(), "detail": _plain(response)}
    raise errors.from_problem({**problem, "status": response.status_code}, response.headers)


def _plain(response: httpx2.Response) -> str:
    """What an answer says that is not the service's own, such as a proxy's page, in one line."""
    said = f"{response.status_code} {response.reason_phrase}".strip()
    text = " ".join(html.unescape(_MARKUP.sub(" ", response.text[:10_000])).split())
    text = text.removeprefix(said).strip()
    return f"{said}: {text[:200]}" if text else said
