"""A llama.cpp server on a loopback port, in a process of its own: one GGUF base, LoRA adapters chosen per request.

with LlamaServer(base, adapters=[healthcare, legal], parallel=4) as server:
    httpx.post(f"{server.url}/v1/chat/completions", headers=server.headers, json={..., "lora": lora_choice(2, 0)})

A crash or a request that never ends takes that process alone: ``close()`` ends it whatever it does, and it ends with this one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import secrets
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from factory.errors import ServeError

PROGRAM = Path(__file__).with_name("llama_process.py")
SILENT, ERRORS, LOGS = 0, 1, 3  # what llama.cpp prints
ASKED_AGAIN = 60.0  # seconds that it has to say why it refused its files
ERROR = re.compile(r"^[\d.]+ E (?:\S+ +)?\S+: ", re.MULTILINE)  # how it begins to
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
        settings = {"gguf": str(gguf), "adapters": list(map(str, adapters)), "parallel": parallel, "context": context}
        settings |= {"threads": threads or os.cpu_count() or 1, "key": key}
        settings |= {"verbosity": LOGS if logs else SILENT}
        self._process = _spawn()
        try:
            self.url = _start(self._process, settings)
        except BaseException:
            _end(self._process)
            raise
        self._client = httpx.Client(base_url=self.url, headers=self.headers, timeout=600)

    def __enter__(self) -> LlamaServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Of the process that llama.cpp runs in."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs. It may be stuck all the same.

        A process that dies closes its files one after another, its end of this pipe before the connections of its requests.
        """
        return self._process.poll() is None and not _has_closed(self._process)

    @property
    def ending(self) -> str:
        """``server.ending`` → "signal SIGSEGV" or "exit code 1", once it is not alive."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        return _ending(self._process)

    def close(self) -> None:
        """Ends the process, whatever it does: running requests are cut off. A second call does nothing."""
        self._client.close()
        _end(self._process)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """``server.tokenize(["What is gout?"])``: ids without begin-of-text; the text of a special token is that token."""
        return [self._post("/tokenize", content=text, add_special=False, parse_special=True)["tokens"] for text in texts]

    def apply_template(self, turns: Sequence[dict[str, str]]) -> str:
        """``server.apply_template([{"role": "user", "content": "What is gout?"}])``: the prompt, as its chats have it."""
        return str(self._post("/apply-template", messages=list(turns))["prompt"])

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
        return self._content("GET", path)

    def _post(self, path: str, **body: Any) -> Any:
        return self._content("POST", path, body)

    def _content(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            response = self._client.request(method, path, json=body)
        except httpx.TransportError as error:
            problem = type(error).__name__ if self.alive else f"it ended by {self.ending}"
            raise ServeError(f"llama.cpp did not answer {path}: {problem}") from None
        if response.is_error:
            text = " ".join(response.text.split())[:300]
            raise ServeError(f"llama.cpp refused {path} ({response.status_code}): {text}")
        return response.json()


def lora_choice(count: int, chosen: int | None) -> list[dict[str, float]]:
    """``{"lora": lora_choice(3, 1)}`` in a request: the second of three adapters; None: the base without an adapter.

    Every adapter is listed, because one that is left out keeps its scale in the server.
    """
    return [{"id": index, "scale": float(index == chosen)} for index in range(count)]


def _spawn() -> subprocess.Popen[str]:
    """The process, before it has its settings. Ctrl-C is for its owner alone, which may have requests to finish first."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise ServeError("llama.cpp is not installed: pip install 'student-factory[serve]'")
    return subprocess.Popen(_command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


def _command() -> list[str]:
    return [sys.executable, "-P", str(PROGRAM)]  # -P: its folder has modules with common names


def _start(process: subprocess.Popen[str], settings: dict[str, Any]) -> str:
    """The server's address, once it has loaded its files."""
    assert process.stdin is not None and process.stdout is not None
    with suppress(BrokenPipeError):  # it has ended already
        process.stdin.write(json.dumps(settings) + "\n")
        process.stdin.flush()
    line = process.stdout.readline()
    said = json.loads(line) if line else {}
    if "url" in said:
        return str(said["url"])
    process.wait()
    why = _reason(settings) if "refused" in said else f"it ended by {_ending(process)}"
    raise ServeError(f"llama.cpp cannot load {', '.join([settings['gguf'], *settings['adapters']])}: {why}")


def _reason(settings: dict[str, Any]) -> str:
    """Why it refused its files: its first error, in one line. It printed nothing, so it is asked once more."""
    asked = json.dumps(settings | {"verbosity": ERRORS})
    said = ""
    with suppress(subprocess.TimeoutExpired):  # this time it took them
        run = subprocess.run(_command(), input=asked, capture_output=True, text=True, errors="replace", timeout=ASKED_AGAIN)
        said = run.stderr
    errors = ERROR.split(said)[1:]
    return " ".join(errors[0].split()) if errors else "not a supported GGUF, or an adapter of another base"


def _has_closed(process: subprocess.Popen[str]) -> bool:
    """Whether its output has ended: after its address it writes nothing."""
    if process.stdout is None or process.stdout.closed:
        return True
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    return bool(poll.poll(0))


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):  # what could not be written
            if pipe is not None:
                pipe.close()


def _ending(process: subprocess.Popen[str]) -> str:
    code = process.poll()
    try:
        return f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
    except ValueError:
        return f"signal {-(code or 0)}"
