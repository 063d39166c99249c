"""Requests to one service as one caller: tokens, retries, and the errors of its answers."""

from __future__ import annotations

import html
import os
import re
import threading
from collections.abc import Iterator, Mapping
from functools import lru_cache
from json import JSONEncoder
from typing import Any, Self

import httpx2
import orjson

from .. import errors
from .retries import NOT_DONE, RETRIED, Unreachable, bounds, pause, retry_after

SILENCE_SECONDS = 45.0
"""A stream without data for this long is broken: the service sends a heartbeat every 15 s."""

JSON_BODY = {"Content-Type": "application/json"}

# Not orjson, which writes NaN as null and dates as texts. Values that JSON lacks must be refused.
_STRICT = JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_STREAM_TIMEOUT = httpx2.Timeout(30.0, read=SILENCE_SECONDS)
_MARKUP = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.IGNORECASE | re.DOTALL)
# The errors of a proxy, which sends no problem type, that have a class of their own.
_PROXY_ERRORS = {
    kind.status: kind for kind in (errors.BodyTooLarge, errors.TooManyRequests, errors.Unavailable)
}


@lru_cache(maxsize=16)
def _unpickled(
    kind: type[Connection], url: str, token: str, timeout: float, retries: int
) -> Connection:
    # One client for each process, so that its connections are kept.
    return kind(url, token=token, timeout=timeout, retries=retries)


class Connection:
    """Sends any request of the API."""

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

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the URL and the token, for a process that runs jobs for this one."""
        if self._token is None or self._transport is not None:
            raise TypeError("Only a client with a token and without a transport can be pickled.")
        return _unpickled, (type(self), self.url, self._token, self._timeout, self.retries)

    def _connect(self) -> httpx2.Client:
        self._process = os.getpid()
        return httpx2.Client(base_url=self.url, timeout=self._timeout, transport=self._transport)

    def forked(self) -> None:
        """Use no connection, lock or refresh token of the parent in a forked process.

        The first request of a process calls it.
        """
        # Kept, so that it is not closed: its connections belong to the parent.
        self._inherited = self._http
        self._lock = threading.Lock()
        if self._login is not None:
            # A refresh token that two processes use ends the login session of both.
            self._refresh_token = None
        self._http = self._connect()

    def close(self) -> None:
        """Close the connections."""
        if self._process == os.getpid():
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

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
        """Call any operation of the API and return the JSON of its answer.

        ``json`` may be bytes that are JSON already. ``safe`` says whether the request may be
        repeated although it may have been carried out; by default only GET, HEAD and DELETE.
        Raises the service's error as one of ``jobapi.errors``, or ``Unreachable``.
        """
        if safe is None:
            safe = method in ("GET", "HEAD", "DELETE")
        body = json if json is None or isinstance(json, bytes) else encode(json)
        sent = {**({} if body is None else JSON_BODY), **(headers or {})}
        return decode(self._send(method, path, body, params=params, headers=sent, safe=safe))

    def _post(
        self,
        path: str,
        json: Any = None,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Call a POST; with an idempotency ``key`` it is safe to repeat."""
        sent = {**(headers or {}), **({} if key is None else {"Idempotency-Key": key})}
        return self.request("POST", path, json=json, headers=sent, safe=key is not None)

    def _pages(self, path: str, params: dict[str, Any]) -> Iterator[Any]:
        """Yield the items of all pages of a list."""
        while True:
            answer = self.request("GET", path, params=params)
            yield from answer["data"]
            params["cursor"] = answer["pagination"]["next_cursor"]
            if params["cursor"] is None:
                return

    def _open_stream(
        self, path: str, params: Mapping[str, Any], position: str | None
    ) -> httpx2.Response:
        """Open a stream of events after ``position``. The caller closes it."""
        headers = {} if position is None else {"Last-Event-ID": position}
        stream = self._send("GET", path, params=params, headers=headers, safe=True, stream=True)
        if not stream.is_success:
            decode(stream)
        if not stream.headers.get("Content-Type", "").startswith("text/event-stream"):
            # A proxy answered instead of the service.
            stream.close()
            raise Unreachable(f"{stream.request.url}: the answer is not a stream of events")
        return stream

    def _send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str],
        safe: bool,
        stream: bool = False,
    ) -> httpx2.Response:
        """Send a request with the caller's token, and once more if the token has expired."""
        if self._process != os.getpid():
            self.forked()

        def send(token: str) -> httpx2.Response:
            given = {**headers, "Authorization": f"Bearer {token}"}
            return self._try(method, path, body, params, given, safe=safe, stream=stream)

        token = self._access_token()
        response = send(token)
        if response.status_code == 401 and self._renew(token):
            response = send(self._access_token())
        return response

    def _try(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] = JSON_BODY,
        *,
        safe: bool = True,
        stream: bool = False,
    ) -> httpx2.Response:
        """Send a request, and retry it while its failures allow that."""
        tries = 0
        while True:
            timeout = _STREAM_TIMEOUT if stream else bounds().timeout(self._timeout)
            request = self._http.build_request(
                method, path, content=body, params=params, headers=headers, timeout=timeout
            )
            try:
                response = self._http.send(request, stream=stream)
                if stream and response.is_success:
                    return response
                response.read()
            except httpx2.TransportError as error:
                never_sent = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
                again = tries < self.retries and (safe or never_sent)
                if not (again and pause(tries)):
                    raise Unreachable(f"{method} {self.url}{path}: {error!r}") from error
            else:
                retried = response.status_code in (RETRIED if safe else NOT_DONE)
                again = tries < self.retries and retried
                if not (again and pause(tries, retry_after(response.headers))):
                    return response
            tries += 1

    def _access_token(self) -> str:
        if self._token is None:
            self._renew(None)
        return str(self._token)

    def _renew(self, used: str | None) -> bool:
        """Replace the access token ``used``, once for all threads; False without a password."""
        if self._login is None:
            return False
        with self._lock:
            # Otherwise another thread has replaced it already.
            if self._token == used:
                tokens = self._refresh() or decode(
                    self._try("POST", "/auth/login", encode(self._login))
                )
                self._token = tokens["access_token"]
                self._refresh_token = tokens["refresh_token"]
        return True

    def _refresh(self) -> Any:
        if self._refresh_token is None:
            return None
        headers = {"Authorization": f"Bearer {self._refresh_token}"}
        response = self._try("POST", "/auth/refresh", headers=headers)
        return decode(response) if response.status_code == 200 else None


def encode(value: Any) -> bytes:
    """A value as JSON. Raises ``TypeError`` or ``ValueError`` if JSON cannot express it."""
    return _STRICT.encode(value).encode()


def decode(response: httpx2.Response) -> Any:
    """The JSON of an answer. Raises the service's error, or ``Unreachable`` without JSON."""
    if response.is_success:
        try:
            return orjson.loads(response.content) if response.content else None
        except ValueError:
            # A proxy answered instead of the service.
            raise Unreachable(f"{response.request.url}: the answer is not JSON") from None
    try:
        problem = orjson.loads(response.content)
    except ValueError:
        problem = None
    if not isinstance(problem, dict) or "type" not in problem:
        # Not from the service: a proxy, or another server.
        kind = _PROXY_ERRORS.get(response.status_code, errors.JobApiError)
        problem = {"type": kind.type_name(), "detail": _in_one_line(response)}
    raise errors.from_problem({**problem, "status": response.status_code}, response.headers)


def _in_one_line(response: httpx2.Response) -> str:
    """The status and the text of a page that is not the service's own, such as a proxy's."""
    status = f"{response.status_code} {response.reason_phrase}".strip()
    text = " ".join(html.unescape(_MARKUP.sub(" ", response.text[:10_000])).split())
    text = text.removeprefix(status).strip()
    return f"{status}: {text[:200]}" if text else status
