"""Claims jobs and hands them to the Celery application.

jobapi worker celery_dispatcher:dispatcher
"""

from celery_app import app

from jobapi.client.celery import Dispatcher

dispatcher = Dispatcher(app, {"invoice": "shop.send_invoice"})
