"""A hive for tests: `fake_hive.py --port PORT [--mode MODE] [--marker FILE]`."""

import argparse
import encodings.idna  # needed later, when another user may not read Python's folder any more
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--mode", default="healthy")
parser.add_argument("--marker", default="")
args = parser.parse_args()
token = os.environ.get("RBEE_API_TOKEN", "")
assert token == os.environ.get("LLORCH_API_TOKEN", "")
if args.mode == "foreign":
    token = "another token"

if args.mode == "crash":
    print("loading settings", flush=True)
    sys.exit("boom: no engine found")
if args.mode == "mute":
    print("thinking about it", flush=True)
    subprocess.Popen(["sleep", "600"])
    time.sleep(600)
if args.mode == "loses-port-once" and not os.path.exists(args.marker):
    # Something else, in a session of its own, takes the port first.
    other = [sys.executable, __file__, "--port", str(args.port), "--mode", "foreign"]
    thief = subprocess.Popen(other, start_new_session=True)
    with open(args.marker, "w") as marker:
        marker.write(str(thief.pid))
    time.sleep(1)
if args.mode == "other-user":
    os.setuid(65534)
if args.mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


worker_ended = []


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if self.path == "/v1/health" or self.path == "/health" and args.mode != "old":
            return self.answer(200, {"status": "alive"})
        if args.mode == "other-user":
            print("was shown", self.headers["Authorization"], flush=True)
        elif self.headers["Authorization"] != f"Bearer {token}":
            return self.answer(401, {"error": "unauthorized"})
        if self.path == "/v1/workers/list":
            worker = {"id": "w1", "url": "http://127.0.0.1:1", "model_ref": "file:a.gguf",
                      "backend": "cpu", "state": "ready", "protocol": "openai"}
            clings = args.mode == "clings-to-worker" and not worker_ended
            return self.answer(200, {"workers": [worker] if clings else []})
        self.answer(404, {})

    def do_POST(self):
        if self.headers["Authorization"] != f"Bearer {token}":
            return self.answer(401, {"error": "unauthorized"})
        if self.path == "/v1/workers/shutdown" and args.mode == "clings-to-worker":
            if not os.path.exists(args.marker):
                print("the worker stays", flush=True)
                return self.answer(500, {"error": "not now"})
            worker_ended.append(True)
            return self.answer(200, {})
        if self.path == "/v1/shutdown" and args.mode not in ("old", "stubborn"):
            self.answer(200, {})
            print("asked to stop", flush=True)
            threading.Thread(target=server.shutdown).start()
            return
        self.answer(404, {})

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer.allow_reuse_address = True
server = http.server.ThreadingHTTPServer(("127.0.0.1", args.port), Handler)
print("listening on", args.port, flush=True)
server.serve_forever()
