"""llama-server from a Python package: llama.cpp's own HTTP server under the flags that a hive gives.

The package `xllamacpp` carries llama.cpp for Linux (x86-64, ARM) and macOS, built for any CPU of
that kind, but no program. This is the program: parts.sh puts it where RBEE_LLAMA_SERVER points when
there is no llama-server on PATH.
"""

import argparse
import os
import signal

import xllamacpp

POOLING = {
    name: getattr(xllamacpp.llama_pooling_type, f"LLAMA_POOLING_TYPE_{name.upper()}")
    for name in ("none", "mean", "cls", "last", "rank")
}


def arguments():
    parser = argparse.ArgumentParser(prog="llama-server", description=__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"xllamacpp {xllamacpp.__version__}")
    parser.add_argument("-m", "--model", required=True, help="a GGUF file")
    parser.add_argument("-a", "--alias", help="the name it serves the model by")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("-np", "--parallel", type=int, default=1, help="slots")
    parser.add_argument("-c", "--ctx-size", type=int, default=0, help="tokens, over all slots")
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count())
    parser.add_argument("-ngl", "--gpu-layers", type=int, default=0)
    parser.add_argument("--sleep-idle-seconds", type=int, default=-1)
    parser.add_argument("--sse-ping-interval", type=int, default=30, help="seconds")
    parser.add_argument("-b", "--batch-size", type=int, default=2048)
    parser.add_argument("--embeddings", action="store_true")
    parser.add_argument("--pooling", choices=POOLING)
    parser.add_argument("--api-key", default=os.environ.get("LLAMA_API_KEY", ""), help="keys, with commas between")
    return parser.parse_args()


def parameters(given):
    params = xllamacpp.CommonParams()
    params.model.path = given.model
    params.hostnames = [given.host]
    params.port = given.port
    params.n_parallel = given.parallel
    params.n_ctx = given.ctx_size
    params.n_gpu_layers = given.gpu_layers
    params.cpuparams.n_threads = given.threads
    params.embedding = given.embeddings
    params.endpoint_slots = True
    params.sleep_idle_seconds = given.sleep_idle_seconds
    params.sse_ping_interval = given.sse_ping_interval
    params.n_batch = given.batch_size
    params.api_keys = [key for key in given.api_key.split(",") if key]
    if given.alias:
        params.model_alias = {given.alias}
    if given.pooling:
        params.pooling_type = POOLING[given.pooling]
    return params


if __name__ == "__main__":
    # Returns when the model is loaded, and raises when it can't be. Its threads serve from then on.
    server = xllamacpp.Server(parameters(arguments()))
    print(f"llama-server listens on {server.listening_address}", flush=True)
    while True:
        signal.pause()
