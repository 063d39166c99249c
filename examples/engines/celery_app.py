"""A Celery application as a team has it. Only the import of ``jobapi.client.celery`` is new.

celery -A celery_app worker        with JOBAPI_URL and JOBAPI_TOKEN in its environment
"""

import os

from celery import Celery

import jobapi.client.celery  # noqa: F401

app = Celery("shop", broker=os.environ.get("CELERY_BROKER", "redis://localhost"))


@app.task(name="shop.send_invoice")
def send_invoice(order: int, currency: str = "EUR") -> dict[str, object]:
    """Get the job's metadata as keyword arguments; what it returns is the job's result."""
    return {"invoice": f"{order}-{currency}"}
