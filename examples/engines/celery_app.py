"""A Celery application as a team has it. Importing ``jobapi.client.celery`` is all that it needs.

celery -A celery_app worker        with JOBAPI_URL and JOBAPI_TOKEN in its environment
"""

import os

from celery import Celery

from jobapi.client.celery import current_job

app = Celery("shop", broker=os.environ.get("CELERY_BROKER", "redis://localhost"))


@app.task(name="shop.send_invoice")
def send_invoice(order: int, currency: str = "EUR") -> dict[str, object]:
    """Get the job's metadata as keyword arguments; what it returns is the job's result."""
    if job := current_job():  # None for other messages
        job.progress(50, "rendering")
    return {"invoice": f"{order}-{currency}"}
