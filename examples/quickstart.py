"""Starts a queen, asks a real model one question through her, and stops everything.

    make quickstart [PROMPT="…"]     asks, prints the tokens as they come, cleans up
    make run [PORT=8080]             leaves the queen running until Ctrl-C

The queen starts the hive on the first request, and the hive starts the engine. Python's standard
library is all that is needed; any HTTP client could ask in its place.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = "smollm2"
SYSTEM = "You are a helpful assistant."
DEFAULT_PROMPT = "What is the capital of France?"
# Every process that comes of this one inherits it.
MARK = f"RBEE_QUICKSTART={uuid.uuid4()}"


class Failed(Exception):
    """What went wrong, for the user to read."""


def free_port(wanted=0):
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", wanted))
        return listener.getsockname()[1]


@contextlib.contextmanager
def a_queen(port, folder, log):
    """A queen without any configuration; her hive finds the models in RBEE_HIVE_MODELS."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("QUEEN_")}
    name, value = MARK.split("=")
    env |= {name: value, "RBEE_HIVE_STATE": str(folder / "hive")}
    target = ROOT / os.environ.get("CARGO_TARGET_DIR", "target")
    command = [target / "quick" / "queen-rbee", "--port", str(port), "--bind", "127.0.0.1"]
    command += ["--database", folder / "queen.db"]
    # A session of her own: Ctrl-C reaches this program alone, which then stops her in order.
    queen = subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )
    try:
        wait_for_health(queen, port)
        yield queen
    finally:
        stop(queen)


def wait_for_health(queen, port):
    deadline = time.monotonic() + 20
    while queen.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.05)
    raise Failed(f"the queen did not come up (exit code {queen.poll()})")


def marked():
    """The processes, but for this one, that carry our mark in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if MARK.encode() in (process / "environ").read_bytes().split(b"\0"):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found.append(f"{process.name}: {command.strip()}")
    return found


def stop(queen):
    """SIGTERM: she drains, stops the hive, and the hive its engines."""
    if queen.poll() is not None:
        return
    print("Stopping.", file=sys.stderr)
    patience = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        queen.terminate()
        queen.wait(timeout=60)
    except subprocess.TimeoutExpired:
        queen.kill()
        queen.wait()
        raise Failed("the queen did not stop within 60 s of SIGTERM; she was killed") from None
    finally:
        signal.signal(signal.SIGINT, patience)


def events(response):
    """The JSON of every event up to [DONE]."""
    for line in response:
        if not line.startswith(b"data:"):
            continue  # comments keep the connection alive while the model loads
        data = line[len(b"data:"):].strip()
        if data == b"[DONE]":
            return
        yield json.loads(data)
    raise Failed("the stream ended without [DONE]")


def ask(port, prompt):
    """Prints the answer as it comes, and then how fast it came."""
    body = {
        "model": MODEL,
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": 256,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    asked = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    response = connection.getresponse()
    if response.status != 200:
        raise Failed(f"status {response.status}: {response.read().decode()}")
    first, tokens, counted = None, 0, None
    for event in events(response):
        if "error" in event:
            raise Failed(f"the stream says {event['error']}")
        counted = (event.get("usage") or {}).get("completion_tokens", counted)
        for choice in event.get("choices", []):
            text = (choice.get("delta") or {}).get("content")
            if text:
                first = first or time.monotonic()
                last = time.monotonic()
                tokens += 1
                print(text, end="", flush=True)
    print()
    if first is None:
        raise Failed("the answer had no text")
    tokens = counted or tokens
    rate = f"{(tokens - 1) / (last - first):.1f} tokens/s" if last > first else "one token"
    started = "starting the hive and loading the model included"
    print(f"\n{tokens} tokens; first token after {first - asked:.2f} s ({started}); {rate}")


def tail(log):
    lines = Path(log.name).read_text(errors="replace").splitlines()[-20:]
    return "\n".join(f"    {line}" for line in lines)


def quickstart():
    prompt = os.environ.get("RBEE_PROMPT") or DEFAULT_PROMPT
    with tempfile.TemporaryDirectory(prefix="rbee-quickstart-") as folder:
        with open(Path(folder) / "queen.log", "w") as log:
            try:
                port = free_port()
                with a_queen(port, Path(folder), log):
                    print(f"> {prompt}", flush=True)
                    ask(port, prompt)
            except (Failed, OSError, http.client.HTTPException) as e:
                raise Failed(f"{e}\nThe queen's last lines:\n{tail(log)}") from e
    left = marked()
    if left:
        raise Failed("still running, although everything was stopped:\n" + "\n".join(left))
    print("Everything is stopped, nothing is left running.")


def run():
    wanted = int(os.environ.get("PORT") or 8080)
    try:
        port = free_port(wanted)
    except OSError:
        port = free_port()
        print(f"Port {wanted} is in use; taking {port}.")
    folder = ROOT / ".cache" / "run"
    folder.mkdir(parents=True, exist_ok=True)
    body = json.dumps({"model": MODEL, "prompt": "Once upon a time", "max_tokens": 20})
    with open(folder / "queen.log", "w") as log:
        try:
            with a_queen(port, folder, log) as queen:
                print(f"The queen listens on http://127.0.0.1:{port}; her log is {log.name}\n")
                print(f"    curl -N http://127.0.0.1:{port}/v2/tasks -d '{body}'\n")
                print("Ctrl-C stops her, her hive and its engines.", flush=True)
                raise Failed(f"the queen ended by herself with {queen.wait()}")
        except Failed as e:
            raise Failed(f"{e}\n{tail(log)}") from e


def main():
    # As Ctrl-C: the way out leads through the clean-up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run() if sys.argv[1:] == ["run"] else quickstart()
    except Failed as e:
        sys.exit(f"quickstart: {e}")
    except KeyboardInterrupt:
        sys.exit(130)


main()
