"""The program that a ``LlamaServer`` runs in a process of its own: it imports xllamacpp alone, so it starts fast and is small.

stdin: one line of JSON, the settings; then nothing until its end, which ends this process, also in the middle of a request.
stdout: one line of JSON, ``{"url": ...}`` once requests can come, or ``{"refused": ...}``.

The kernel closes the pipe when the process at its other end is gone, however that ended: no engine outlives its owner.
(Linux could send a signal instead, but does so already when the *thread* ends that started the process.)
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

STEP_TOKENS = 512  # of prompts at a time: between two steps a server hears of cancelled requests, and shows that it is alive


def main() -> None:
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what llama.cpp prints is no answer
    with suppress(OSError):  # where memory runs out, Linux ends an engine before anything else
        Path("/proc/self/oom_score_adj").write_text("500")
    try:
        server = serve(json.loads(sys.stdin.readline()))
    except (RuntimeError, ValueError) as error:
        print(json.dumps({"refused": str(error)}), file=answer, flush=True)
        return
    print(json.dumps({"url": server.listening_address}), file=answer, flush=True)
    sys.stdin.read()
    os._exit(0)  # at once: the server's destructor would wait for its requests


def serve(settings: dict[str, Any]) -> Any:
    """``serve({"gguf": "base.gguf", "adapters": [], ...})``: a running server. Raises: what xllamacpp raises."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["gguf"]
    params.lora_adapters = [adapter_info(xllamacpp, path) for path in settings["adapters"]]
    params.n_parallel, params.n_ctx = settings["parallel"], settings["parallel"] * settings["context"]
    params.n_batch = STEP_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [settings["key"]]  # the kernel chooses a free port
    params.cors_origins = ""  # no web page may send requests
    params.endpoint_metrics, params.endpoint_slots, params.ui, params.warmup = True, False, False, False
    params.fit_params = False  # fail rather than shrink the context
    params.cache_ram_mib = 0  # this cache ignores adapters: one would get the keys and values of another
    params.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_NONE  # leave the answer whole
    params.prefill_assistant = False  # a last message of the assistant is a turn, as in training, not a beginning to repeat
    params.sse_ping_interval = 1  # seconds; the server notices as often that a client is gone
    params.verbosity = settings["verbosity"]
    return xllamacpp.Server(params)


def adapter_info(xllamacpp: Any, path: str) -> Any:
    adapter = xllamacpp.CommonAdapterLoraInfo()
    adapter.path, adapter.scale = path, 0.0
    return adapter


if __name__ == "__main__":
    main()
