"""Receives webhooks: verifies each message, and processes it once however often it is sent.

WEBHOOK_SECRET=whsec_… python receiver.py [PORT]
"""

import os
import sqlite3
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

from standardwebhooks import Webhook, WebhookVerificationError

webhook = Webhook(os.environ["WEBHOOK_SECRET"])
seen = sqlite3.connect(os.environ.get("WEBHOOK_DATABASE", "webhooks.sqlite3"))
seen.execute("CREATE TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY, type TEXT)")


class Receiver(BaseHTTPRequestHandler):
    """Answers 204 once a message is stored, so that what fails before is sent again."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        try:
            message = webhook.verify(body, {k.lower(): v for k, v in self.headers.items()})
        except (WebhookVerificationError, ValueError):
            self.send_error(401)
            return
        with seen:  # what a message causes belongs into the same transaction as its id
            row = (self.headers["webhook-id"], message["type"])
            new = seen.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", row).rowcount
        print("new" if new else "again", message["type"], self.headers["webhook-id"], flush=True)
        self.send_response(204)
        self.end_headers()


server = HTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 8080), Receiver)
print(f"http://127.0.0.1:{server.server_port}/", flush=True)
server.serve_forever()
