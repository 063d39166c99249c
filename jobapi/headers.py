"""HTTP headers and media types that the views and gunicorn's worker share."""

from __future__ import annotations

PROBLEM = "application/problem+json"
"""The media type of every error (RFC 9457)."""

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
"""The headers of every response that does not set them itself."""
