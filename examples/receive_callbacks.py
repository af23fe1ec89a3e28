"""Prints every callback of Darkroom: `python receive_callbacks.py 9000 whsec_...`

In local mode the secret is in .darkroom/webhook-secret. A callback may come more than once: its webhook-id says so.
Answer within seconds and work afterwards; anything but 2xx brings it again. Needs `pip install standardwebhooks`.
"""

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

from standardwebhooks import Webhook, WebhookVerificationError

webhook, seen = Webhook(sys.argv[2]), set()  # keep what was seen in a database where it must survive a restart


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            told = webhook.verify(body, dict(self.headers))
        except WebhookVerificationError:
            self.send_error(401)  # not from Darkroom
            return
        if self.headers["webhook-id"] not in seen:
            seen.add(self.headers["webhook-id"])
            print(told["type"], told["data"].get("image_id", told["data"]["batch_id"]), flush=True)
        self.send_response(204)
        self.end_headers()


HTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
