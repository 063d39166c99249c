"""For any WSGI server: ``gunicorn wsgi:app``."""

import gc

from jobapi import create_app

app = create_app()

# What has been loaded stays; see ``jobapi serve``.
gc.collect()
gc.freeze()
