"""The exceptions of the package, one for each type of problem.

::

    JobApiError
    ├── BadRequest                400
    │   └── MalformedJson
    ├── Unauthorized              401
    │   ├── TokenMissing, TokenInvalid, TokenExpired, TokenRevoked
    │   └── LoginFailed
    ├── Forbidden                 403
    │   ├── NotAMember, RoleTooLow, KeyNotAllowed, AdministratorOnly
    │   ├── JobTypeNotAllowed
    │   └── CrossSiteRequest
    ├── NotFound                  404
    │   ├── UnknownPath, WorkspaceNotFound, JobNotFound
    │   ├── UserNotFound, MemberNotFound, KeyNotFound, OperationNotFound
    │   └── JobTypeNotFound, ScheduleNotFound, WebhookNotFound, DeliveryNotFound
    ├── MethodNotAllowed          405
    ├── Conflict                  409
    │   ├── JobNotCancellable, JobNotRetryable, JobNotEditable
    │   ├── TransitionNotAllowed, JobNotRunning, JobNotEnded
    │   ├── LeaseRequired, LeaseLost, AlreadyBegun
    │   ├── JobExists, AtCapacity, RateLimited, TypePaused, WorkspacePaused
    │   ├── RequestInProgress, OperationEnded
    │   ├── ScheduleNameTaken, TooManySchedules
    │   ├── TooManyWebhooks, WebhookDisabled
    │   └── UsernameTaken, AlreadyMember, LastOwner, LastAdministrator
    ├── PreconditionFailed        412
    ├── BodyTooLarge              413
    ├── UriTooLong                414
    ├── UnsupportedMediaType      415
    ├── ValidationFailed          422
    ├── PageTooLarge              422
    ├── IdempotencyKeyReused      422
    ├── TooManyRequests           429
    │   └── QueueFull
    ├── HeadersTooLarge           431
    ├── InternalError             500
    └── Unavailable               503

The class docstring is the ``title`` of the problem, the message of an exception is
its ``detail``. Over HTTP they become problem details (RFC 9457). A ``detail`` says
what is wrong, then what to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

PROBLEM_TYPE_PREFIX = "urn:jobapi:problem:"

MAX_MESSAGES = 20
"""How many messages a ``ValidationFailed`` keeps. Further ones are only counted."""

# In characters. They keep the body of an error below 64 KiB, whatever the request contained.
_MAX_FIELD = 100
_MAX_MESSAGE = 500
_MAX_DETAIL = 4000


class JobApiError(Exception):
    """Request failed"""

    status = 500

    created: Sequence[Any] = ()
    """The jobs that ``Client.create_many`` had created before this error."""

    def __init__(self, detail: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = dict(headers or {})

    @classmethod
    def type_name(cls) -> str:
        """The stable end of the problem's ``type``, such as ``job-not-found``."""
        return re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()

    @classmethod
    def title(cls) -> str:
        """The title of this type of problem, the same for each occurrence."""
        return (cls.__doc__ or cls.__name__).split("\n", 1)[0].rstrip(".")

    def problem(self) -> dict[str, Any]:
        """The members of the problem details object (RFC 9457, section 3)."""
        return {
            "type": PROBLEM_TYPE_PREFIX + self.type_name(),
            "title": self.title(),
            "status": self.status,
            "detail": _cut(self.detail, _MAX_DETAIL),
        }


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


class BadRequest(JobApiError):
    """Bad request"""

    status = 400


class MalformedJson(BadRequest):
    """Malformed JSON"""


class Unauthorized(JobApiError):
    """Authentication failed"""

    status = 401

    def __init__(self, detail: str) -> None:
        # RFC 6750, section 3: a request without a token gets no error code.
        code = "" if isinstance(self, TokenMissing | LoginFailed) else ' error="invalid_token"'
        super().__init__(detail, headers={"WWW-Authenticate": f"Bearer{code}"})


class TokenMissing(Unauthorized):
    """Missing token"""


class TokenInvalid(Unauthorized):
    """Invalid token"""


class TokenExpired(Unauthorized):
    """Token expired"""


class TokenRevoked(Unauthorized):
    """Token revoked"""


class LoginFailed(Unauthorized):
    """Login failed"""


class Forbidden(JobApiError):
    """Access denied"""

    status = 403


class NotAMember(Forbidden):
    """No access to this workspace"""


class RoleTooLow(Forbidden):
    """Role too low"""


class KeyNotAllowed(Forbidden):
    """Not allowed with an API key"""


class AdministratorOnly(Forbidden):
    """Administrator required"""


class JobTypeNotAllowed(Forbidden):
    """Job type not allowed for this API key"""


class CrossSiteRequest(Forbidden):
    """Cross-site request refused"""


class NotFound(JobApiError):
    """Not found"""

    status = 404


class UnknownPath(NotFound):
    """Path not found"""


class WorkspaceNotFound(NotFound):
    """Workspace not found"""


class JobNotFound(NotFound):
    """Job not found"""


class UserNotFound(NotFound):
    """User not found"""


class MemberNotFound(NotFound):
    """Member not found"""


class JobTypeNotFound(NotFound):
    """Job type not found"""


class ScheduleNotFound(NotFound):
    """Schedule not found"""


class KeyNotFound(NotFound):
    """API key not found"""


class OperationNotFound(NotFound):
    """Operation not found"""


class WebhookNotFound(NotFound):
    """Webhook not found"""


class DeliveryNotFound(NotFound):
    """Delivery not found"""


class MethodNotAllowed(JobApiError):
    """Method not allowed"""

    status = 405


class Conflict(JobApiError):
    """Conflict with the current state"""

    status = 409


class JobNotCancellable(Conflict):
    """Job cannot be cancelled"""


class JobNotRetryable(Conflict):
    """Job cannot be retried"""


class JobNotEditable(Conflict):
    """Job cannot be edited"""


class TransitionNotAllowed(Conflict):
    """Status change not allowed"""


class JobNotRunning(Conflict):
    """Job is not running"""


class JobNotEnded(Conflict):
    """Job has not ended"""


class LeaseRequired(Conflict):
    """Job is leased to a worker"""


class LeaseLost(Conflict):
    """Lease lost"""


class AlreadyBegun(Conflict):
    """Attempt was already begun by another run"""


class JobExists(Conflict):
    """A live job has this unique key"""

    def __init__(self, detail: str, *, job_id: str | None = None) -> None:
        """``job_id`` is the id of the live job, if it is known."""
        super().__init__(detail)
        self.job_id = job_id

    def problem(self) -> dict[str, Any]:
        """The problem details, with the extension member ``job_id``."""
        problem = super().problem()
        return problem if self.job_id is None else {**problem, "job_id": self.job_id}


class AtCapacity(Conflict):
    """Limit of running jobs reached"""


class RateLimited(Conflict):
    """Rate limit reached"""


class TypePaused(Conflict):
    """Job type is paused"""


class WorkspacePaused(Conflict):
    """Workspace is paused"""


class OperationEnded(Conflict):
    """Operation has ended"""


class TooManyWebhooks(Conflict):
    """Workspace has as many webhooks as it may have"""


class WebhookDisabled(Conflict):
    """Webhook is disabled"""


class RequestInProgress(Conflict):
    """Request already in progress"""


class ScheduleNameTaken(Conflict):
    """Schedule name taken"""


class TooManySchedules(Conflict):
    """Workspace has as many schedules as it may have"""


class UsernameTaken(Conflict):
    """Username taken"""


class AlreadyMember(Conflict):
    """User is already a member"""


class LastOwner(Conflict):
    """Workspace must keep an owner"""


class LastAdministrator(Conflict):
    """Service must keep an enabled administrator"""


class PreconditionFailed(JobApiError):
    """Precondition failed"""

    status = 412


class BodyTooLarge(JobApiError):
    """Body too large"""

    status = 413


class UriTooLong(JobApiError):
    """URI too long"""

    status = 414


class UnsupportedMediaType(JobApiError):
    """Content type not supported"""

    status = 415


class ValidationFailed(JobApiError):
    """Validation failed"""

    status = 422

    def __init__(self, errors: Mapping[str, list[str]]) -> None:
        """``errors`` maps each field (a dotted path) to its messages.

        The first ``MAX_MESSAGES`` messages are kept. ``detail`` says how many more there are.
        """
        messages = [(field, text) for field, texts in errors.items() for text in texts]
        self.errors: dict[str, list[str]] = {}
        for field, text in messages[:MAX_MESSAGES]:
            kept = self.errors.setdefault(_cut(field, _MAX_FIELD), [])
            kept.append(_cut(text, _MAX_MESSAGE))
        detail = "; ".join(f"{field}: {' '.join(texts)}" for field, texts in self.errors.items())
        more = len(messages) - MAX_MESSAGES
        if more > 0:
            detail = f"{_cut(detail, _MAX_DETAIL - 50)}; … and {more:,} more"
        super().__init__(detail)

    def problem(self) -> dict[str, Any]:
        """The problem details, with the extension member ``errors``."""
        return {**super().problem(), "errors": self.errors}


class PageTooLarge(JobApiError):
    """Page too large"""

    status = 422


class IdempotencyKeyReused(JobApiError):
    """Idempotency key used for a different request"""

    status = 422


class TooManyRequests(JobApiError):
    """Too many requests"""

    status = 429

    def __init__(self, detail: str, *, retry_after: int) -> None:
        """``retry_after`` is in whole seconds."""
        super().__init__(detail, headers={"Retry-After": str(retry_after)})


class QueueFull(TooManyRequests):
    """Queue is full"""


class HeadersTooLarge(JobApiError):
    """Header fields too large"""

    status = 431


class InternalError(JobApiError):
    """Internal error"""


class Unavailable(JobApiError):
    """Temporarily unavailable"""

    status = 503

    def __init__(self, detail: str, *, retry_after: int = 1) -> None:
        """``retry_after`` is in whole seconds."""
        super().__init__(detail, headers={"Retry-After": str(retry_after)})


def all_errors(root: type[JobApiError] = JobApiError) -> Iterator[type[JobApiError]]:
    """All classes of errors, base classes included."""
    yield root
    for child in root.__subclasses__():
        yield from all_errors(child)


def from_problem(problem: Mapping[str, Any], headers: Mapping[str, str]) -> JobApiError:
    """The exception for a problem details object in a response with ``headers``.

    An unknown ``type``, which a newer service may send, becomes a ``JobApiError``
    with the status of the response.
    """
    name = str(problem.get("type", "")).removeprefix(PROBLEM_TYPE_PREFIX)
    found = next((cls for cls in all_errors() if cls.type_name() == name), JobApiError)
    error = found.__new__(found)
    JobApiError.__init__(error, str(problem.get("detail", "")), headers=headers)
    error.status = int(problem.get("status", found.status))
    if isinstance(error, ValidationFailed):
        error.errors = dict(problem.get("errors", {}))
    if isinstance(error, JobExists):
        error.job_id = problem.get("job_id")
    return error
