"""An engine for tests. What it does is written in its "model", a list of words:

    slow SECONDS    loads that long        exit CODE   ends while loading
    hang            never gets ready       crash       ends when POST /crash comes
    stubborn        ignores SIGTERM        child       has a child that it does not end
    port-taken      ends once as if its port were taken
"""

import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

port, model, served_as = int(sys.argv[1]), sys.argv[2], sys.argv[3]
words = open(model).read().split()
ready = threading.Event()
key = os.environ.get("LLAMA_API_KEY")


def argument(word):
    return words[words.index(word) + 1] if word in words else None


class Handler(BaseHTTPRequestHandler):
    def answer(self, status, text):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if key and self.headers["Authorization"] != f"Bearer {key}":
            return self.answer(401, "Invalid API Key")
        self.answer(200 if ready.is_set() else 503, served_as)

    def do_POST(self):
        if self.path == "/say":
            length = int(self.headers["Content-Length"])
            print(self.rfile.read(length).decode(), flush=True)
        if self.path == "/crash":
            print("stub: crashing as asked", flush=True)
            os._exit(7)
        self.answer(200, "ok")

    def log_message(self, *_):
        pass


print(f"stub: loading {os.path.basename(model)} {sys.argv[4:]}", flush=True)
print(f"stub: token {os.environ.get('RBEE_API_TOKEN')} flavour {os.environ.get('FLAVOUR')}", flush=True)
print(f"stub: key {key} end", flush=True)
print(f"stub: environment {sorted(os.environ)} end", flush=True)
if "stubborn" in words:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "child" in words:
    subprocess.Popen(["sleep", "600"])
if "port-taken" in words and not os.path.exists(model + ".tried"):
    open(model + ".tried", "w").close()
    sys.exit("OSError: [Errno 98] Address already in use")
if code := argument("exit"):
    print("stub: out of cheese", file=sys.stderr)
    sys.exit(int(code))
server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
if "hang" not in words:
    time.sleep(float(argument("slow") or 0))
    ready.set()
while True:
    time.sleep(60)
