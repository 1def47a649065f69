"""A llama.cpp server in this process, on a loopback port: one GGUF base, LoRA adapters chosen per request.

with LlamaServer(base, adapters=[healthcare, legal], parallel=4) as server:
    httpx.post(f"{server.url}/v1/chat/completions", headers=server.headers, json={..., "lora": lora_choice(2, 0)})
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from factory.errors import ServeError

MIN_LOG_PROB = -104.0  # llama.cpp takes the logarithm of a float32 probability, which is zero below this


class LlamaServer:
    """``LlamaServer(gguf, adapters=[path, ...], parallel=4, context=2048)``: starts at once and runs until ``close()``.

    url, headers: its address, and the API key that every route but ``/health`` requires. Routes are llama.cpp's:
    ``/v1/chat/completions``, ``/v1/completions``, ``/completion``, ``/tokenize``, ``/metrics``, ...
    adapters: loaded in this order; a request applies one with ``lora_choice``, by default none.
    parallel: concurrent requests. context: tokens per request, prompt and answer together.

    Raises: ServeError if xllamacpp is not installed, or a file is missing or cannot be loaded.
    """

    def __init__(
        self,
        gguf: Path,
        *,
        adapters: Sequence[Path] = (),
        parallel: int = 1,
        context: int = 2048,
        threads: int | None = None,
        logs: bool = False,
    ) -> None:
        for path in (gguf, *adapters):
            if not path.is_file():
                raise ServeError(f"llama.cpp cannot load {path}: no such file")
        self.adapters = tuple(adapters)
        key = secrets.token_urlsafe(16)  # other users of this machine can reach the port
        self.headers = {"Authorization": f"Bearer {key}"}
        self._server: Any = _start(gguf, self.adapters, parallel, context, threads or os.cpu_count() or 1, key, logs)
        self.url = str(self._server.listening_address)
        self._client = httpx.Client(base_url=self.url, headers=self.headers, timeout=600)

    def __enter__(self) -> LlamaServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the port and the memory; a second call does nothing.

        Running requests are cut off, which can block the interpreter for two seconds: let them finish first.
        """
        self._client.close()
        self._server = None  # its destructor stops and joins the threads

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """``server.tokenize(["What is gout?"])``: ids without begin-of-text; the text of a special token is that token."""
        return [self._post("/tokenize", content=text, add_special=False, parse_special=True)["tokens"] for text in texts]

    def log_probs(
        self, sequences: Sequence[Sequence[int]], adapter: int | None = None, starts: Sequence[int] | None = None
    ) -> list[NDArray[np.float32]]:
        """``server.log_probs([[1, 5, 9]], adapter=0)[0]``: (3, V) natural log-probabilities; row i follows ids[: i + 1].

        starts: the first row wanted of each sequence (a prompt's last token), 0 by default. One forward pass per row;
        the tokens before it come from the cache. Values below -104 are returned as -104.
        """
        rows = []
        for ids, start in zip(sequences, starts or [0] * len(sequences), strict=True):
            rows.append(np.stack([self._next_log_probs(list(ids[: end + 1]), adapter) for end in range(start, len(ids))]))
        return rows

    def generate(self, prompt: Sequence[int], count: int, adapter: int | None = None, *, cached: bool = False) -> list[int]:
        """``server.generate([1, 5, 9], 32)``: 32 greedy tokens, past an end of text.

        ``cached`` takes what the prompt shares with the one before from the cache; otherwise all of it is computed.
        """
        answer = self._post(
            "/completion",
            prompt=list(prompt),
            n_predict=count,
            ignore_eos=True,
            temperature=0,
            cache_prompt=cached,
            lora=lora_choice(len(self.adapters), adapter),
            return_tokens=True,
        )
        return list(answer["tokens"])

    def _next_log_probs(self, ids: list[int], adapter: int | None) -> NDArray[np.float32]:
        answer = self._post(
            "/completion",
            prompt=ids,
            n_predict=1,
            n_probs=self.vocabulary,
            logit_bias=[["a", 1e4]],  # the sampled token: after end-of-text or half a character no probabilities are returned
            lora=lora_choice(len(self.adapters), adapter),
            response_fields=["completion_probabilities"],
        )
        row = np.full(self.vocabulary, MIN_LOG_PROB, dtype=np.float32)
        for token in answer["completion_probabilities"][0]["top_logprobs"]:
            row[token["id"]] = max(token["logprob"], MIN_LOG_PROB)
        return row

    @cached_property
    def vocabulary(self) -> int:
        """Size of the vocabulary."""
        return int(self._get("/v1/models")["data"][0]["meta"]["n_vocab"])

    def _get(self, path: str) -> Any:
        return _content(self._client.get(path), path)

    def _post(self, path: str, **body: Any) -> Any:
        return _content(self._client.post(path, json=body), path)


def lora_choice(count: int, chosen: int | None) -> list[dict[str, float]]:
    """``{"lora": lora_choice(3, 1)}`` in a request: the second of three adapters; None: the base without an adapter.

    Every adapter is listed, because one that is left out keeps its scale in the server.
    """
    return [{"id": index, "scale": float(index == chosen)} for index in range(count)]


def _start(gguf: Path, adapters: Sequence[Path], parallel: int, context: int, threads: int, key: str, logs: bool) -> Any:
    try:
        import xllamacpp
    except ImportError as error:
        raise ServeError("llama.cpp is not installed: pip install 'student-factory[serve]'") from error
    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.lora_adapters = [_adapter_info(xllamacpp, path) for path in adapters]
    params.n_parallel, params.n_ctx = parallel, parallel * context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [key]  # the kernel chooses a free port
    params.cors_origins = ""  # no web page may send requests
    params.endpoint_metrics, params.endpoint_slots, params.ui, params.warmup = True, False, False, False
    params.fit_params = False  # fail rather than shrink the context
    params.cache_ram_mib = 0  # this cache ignores adapters: one would get the keys and values of another
    params.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_NONE  # leave the answer whole
    params.prefill_assistant = False  # a last message of the assistant is a turn, as in training, not a beginning to repeat
    params.sse_ping_interval = 1  # seconds; the server notices a close() as often
    params.verbosity = 3 if logs else 0
    try:
        return xllamacpp.Server(params)
    except (RuntimeError, ValueError) as error:
        files = ", ".join(str(path) for path in (gguf, *adapters))
        raise ServeError(f"llama.cpp cannot load {files}: not a supported GGUF, or an adapter of another base") from error


def _adapter_info(xllamacpp: Any, path: Path) -> Any:
    adapter = xllamacpp.CommonAdapterLoraInfo()
    adapter.path, adapter.scale = str(path), 0.0
    return adapter


def _content(response: httpx.Response, path: str) -> Any:
    if response.is_error:
        raise ServeError(f"llama.cpp refused {path} ({response.status_code}): {' '.join(response.text.split())[:300]}")
    return response.json()
