"""The llama.cpp server beside transformers: distributions, adapters, tokens and errors."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from support import tiny

from factory.errors import ServeError
from factory.export.gguf import write_adapter_gguf, write_base_gguf
from factory.models import llama_server
from factory.models.llama_server import LlamaServer, lora_choice


def some_ids(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(3, 360), k=count)


IDS = some_ids(24, seed=0)
NAMES = ("first", "second")
TOLERANCE = 0.1  # of log-probabilities, with 16-bit weights, keys and values of this magnitude


@dataclass(frozen=True)
class Files:
    base: Path
    adapters: tuple[Path, ...]
    model: PeftModel  # with both adapters

    def expected(self, adapter: int | None, ids: list[int]) -> np.ndarray:
        with torch.no_grad():
            if adapter is None:
                with self.model.disable_adapter():
                    logits = self.model(torch.tensor([ids])).logits[0]
            else:
                self.model.set_adapter(NAMES[adapter])
                logits = self.model(torch.tensor([ids])).logits[0]
        return np.asarray(logits.float().log_softmax(-1))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("llama")
    base: Any = tiny.llama()
    base.config.max_position_embeddings = 1024
    write_base_gguf(base, tiny.tokenizer(), folder / "base.gguf", "f16", name="tiny", license="apache-2.0")
    config = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    torch.manual_seed(3)
    model: Any = get_peft_model(base, config, adapter_name=NAMES[0])
    model.add_adapter(NAMES[1], config)
    for name in NAMES:
        for parameter, weight in model.named_parameters():
            if f"lora_B.{name}." in parameter:
                weight.data.normal_(0, 0.1)
        model.save_pretrained(folder, selected_adapters=[name])
        write_adapter_gguf(folder / name, base.config, folder / f"{name}.gguf")
    return Files(folder / "base.gguf", tuple(folder / f"{name}.gguf" for name in NAMES), model.eval())


@pytest.fixture(scope="module")
def server(files: Files) -> Iterator[LlamaServer]:
    with LlamaServer(files.base, adapters=files.adapters, parallel=3, context=512, threads=1) as server:
        yield server


def test_a_cached_prompt_gives_the_same_tokens(server: LlamaServer) -> None:
    alone = server.generate(IDS, 8)
    assert server.generate([*IDS[:20], 5], 8, cached=True) != alone
    assert server.generate(IDS, 8, cached=True) == alone and len(alone) == 8


@pytest.mark.parametrize("adapter", [None, 0, 1])
def test_each_request_uses_its_own_adapter(server: LlamaServer, files: Files, adapter: int | None) -> None:
    rows = server.log_probs([IDS], adapter)[0]
    assert rows.shape == (len(IDS), 360)
    assert np.abs(rows - files.expected(adapter, IDS)).max() < TOLERANCE
    other = files.expected(None if adapter == 0 else 0, IDS)
    assert np.abs(rows - other).max() > 10 * TOLERANCE  # so that the tolerance tells adapters apart
    np.testing.assert_allclose(np.exp(rows).sum(-1), 1, atol=1e-4)


def test_rows_begin_at_starts(server: LlamaServer) -> None:
    whole = server.log_probs([IDS])[0]
    first, second = server.log_probs([IDS, IDS[:9]], starts=[20, 8])
    np.testing.assert_allclose(first, whole[20:], atol=1e-3)
    np.testing.assert_allclose(second, whole[8:9], atol=1e-3)


def rows_of_answer(server: LlamaServer, prompt: list[int], adapter: int | None, count: int) -> np.ndarray:
    """(count, V) log-probabilities before each token of one answer, which is "aaa...": no near tie decides how it goes on."""
    body = {"prompt": prompt, "n_predict": count, "n_probs": 360, "logit_bias": [["a", 1e4]], "lora": lora_choice(2, adapter)}
    found = httpx.post(f"{server.url}/completion", headers=server.headers, json=body, timeout=60).json()
    rows = np.full((count, 360), -np.inf)
    for row, token in zip(rows, found["completion_probabilities"], strict=True):
        for candidate in token["top_logprobs"]:
            row[candidate["id"]] = candidate["logprob"]
    return rows


def test_concurrent_requests_for_different_adapters_do_not_mix(server: LlamaServer) -> None:
    alone = {adapter: rows_of_answer(server, IDS, adapter, 24) for adapter in (None, 0, 1)}
    assert_apart(alone)
    turns = (None, 0, 1, None, 0, 1)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda adapter: rows_of_answer(server, IDS, adapter, 24), turns))
    for rows, adapter in zip(found, turns, strict=True):
        assert np.abs(rows - alone[adapter]).max() < TOLERANCE, adapter


def assert_apart(found: dict[int | None, np.ndarray]) -> None:
    """So that the tolerance tells adapters apart, at each token."""
    for one, other in ((0, 1), (0, None), (1, None)):
        assert np.abs(found[one] - found[other]).max(axis=1).min() > 10 * TOLERANCE


def test_no_adapter_reads_the_prompt_cache_of_another(files: Files) -> None:
    """llama.cpp's prompt cache in memory ignores adapters: it would reuse keys and values computed with another one."""
    one, two = some_ids(200, seed=1), some_ids(200, seed=2)
    with LlamaServer(files.base, adapters=files.adapters, context=512, threads=1) as server:
        for ids, adapter in ((one, 0), (two, 0), (two, None)):
            server.log_probs([ids], adapter, [len(ids) - 1])
        row = server.log_probs([one], None, [len(one) - 1])[0][0]
    assert np.abs(row - files.expected(None, one)[-1]).max() < TOLERANCE


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_long_prompt_to_one_adapter_leaves_nothing_for_another(files: Files, parallel: int) -> None:
    """The same 700 tokens to every adapter in turn, and to all at once, as to engines that have seen nothing before."""
    options: dict[str, Any] = {"adapters": files.adapters, "parallel": parallel, "context": 1024, "threads": 1}
    prompt = some_ids(700, seed=5)

    def answer(server: LlamaServer, adapter: int | None) -> np.ndarray:
        return rows_of_answer(server, prompt, adapter, 12)

    cold = {}
    for adapter in (None, 0, 1):
        with LlamaServer(files.base, **options) as fresh:
            cold[adapter] = answer(fresh, adapter)
    assert_apart(cold)
    with LlamaServer(files.base, **options) as warm:
        for adapter in (0, 1, 0, None, 1, None, 0):
            np.testing.assert_array_equal(answer(warm, adapter), cold[adapter])
        turns = (0, 1, 0, None, 1, None, 0, 0, 1, 1) * 3
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda adapter: answer(warm, adapter), turns))
    for rows, adapter in zip(found, turns, strict=True):  # one's own cache and other batches round differently
        assert np.abs(rows - cold[adapter]).max() < TOLERANCE, adapter


def test_it_tokenizes_as_transformers_does(server: LlamaServer) -> None:
    texts = ["what are the early signs", "", "a  b\n", "<|im_start|>user\nhow is it<|im_end|>", "größer 😀"]
    assert server.tokenize(texts) == tiny.tokenizer()(texts, add_special_tokens=False)["input_ids"]


def test_it_applies_the_chat_template_as_transformers_does(server: LlamaServer) -> None:
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "what is light"}]
    body = {"messages": turns, "max_tokens": 4}
    answer = httpx.post(f"{server.url}/v1/chat/completions", headers=server.headers, json=body).json()
    prompt: Any = tiny.tokenizer().apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert answer["usage"]["prompt_tokens"] == len(tiny.tokenizer()(prompt)["input_ids"])


def test_it_listens_on_loopback_and_requires_its_key(server: LlamaServer) -> None:
    assert server.url.startswith("http://127.0.0.1:")
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert httpx.post(f"{server.url}/completion", json={"prompt": "a"}).status_code == 401
    assert httpx.get(f"{server.url}/metrics").status_code == 401
    assert "llamacpp:requests_processing" in httpx.get(f"{server.url}/metrics", headers=server.headers).text


def test_a_sequence_longer_than_the_context_is_a_one_line_error(server: LlamaServer) -> None:
    with pytest.raises(ServeError, match=r"refused /completion \(400\).*600 tokens.*512 tokens") as error:
        server.log_probs([[5] * 600], starts=[599])
    assert "\n" not in str(error.value)


def test_close_frees_the_port_during_a_request_and_can_be_called_twice(tmp_path: Path) -> None:
    long: Any = tiny.llama(layers=8, width=256)  # slow enough to be still running at close()
    long.config.max_position_embeddings = 8192
    write_base_gguf(long, tiny.tokenizer(), tmp_path / "long.gguf", "f16", name="long", license="mit")
    server = LlamaServer(tmp_path / "long.gguf", context=8192, threads=1)
    body = {"prompt": IDS, "n_predict": -1, "ignore_eos": True, "stream": True}
    with (
        httpx.Client(timeout=60) as client,
        client.stream("POST", f"{server.url}/completion", headers=server.headers, json=body) as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        begin = time.monotonic()
        server.close()
        assert time.monotonic() - begin < 15
        with pytest.raises(httpx.RemoteProtocolError):  # cut off
            list(lines)
    server.close()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")


OWNER = """
import sys
from pathlib import Path
from factory.models.llama_server import LlamaServer
server = LlamaServer(Path(sys.argv[1]), context=512, threads=1)
print(server.url, server.headers["Authorization"], flush=True)
sys.stdin.read()
"""
ENDLESS = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "string", "pattern": "^(a?){1999}$"}}}


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "in a grammar that takes minutes"])
def test_it_ends_with_its_owner_also_if_that_is_killed(files: Files, busy: bool) -> None:
    command = [sys.executable, "-c", OWNER, str(files.base)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        url, _, key = owner.stdout.readline().partition(" ")
        assert httpx.get(f"{url}/health").is_success
        if busy:
            body = {"messages": [{"role": "user", "content": "a"}], "response_format": ENDLESS}
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}/v1/chat/completions", headers={"Authorization": key.strip()}, json=body, timeout=1)
        owner.kill()
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            httpx.get(f"{url}/health")
        except httpx.TransportError:
            return
        time.sleep(0.02)
    pytest.fail("it has outlived its owner")


@pytest.mark.skipif(not hasattr(os, "getsid"), reason="no sessions here")
def test_ctrl_c_in_a_terminal_is_for_its_owner_alone(server: LlamaServer) -> None:
    assert os.getsid(server.pid) != os.getsid(0)


def test_a_crash_while_it_answers_is_a_one_line_error(files: Files) -> None:
    with LlamaServer(files.base, context=512, threads=1) as server:
        assert server.alive
        os.kill(server.pid, signal.SIGSEGV)
        with pytest.raises(ServeError, match=r"^llama\.cpp did not answer /tokenize: it ended by signal SIGSEGV$"):
            while True:
                server.tokenize(["a"])
        assert (server.alive, server.ending) == (False, "signal SIGSEGV")


def test_a_crash_while_it_loads_is_a_one_line_error(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "crash.py"
    program.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setattr(llama_server, "PROGRAM", program)
    with pytest.raises(ServeError, match=r"cannot load .*base\.gguf: it ended by signal SIGSEGV$"):
        LlamaServer(files.base)


def test_its_program_imports_no_torch() -> None:
    """An engine has to start fast and to be small."""
    program = "import runpy, sys; runpy.run_path(sys.argv[1]); print(*sys.modules)"
    command = [sys.executable, "-P", "-c", program, str(llama_server.PROGRAM)]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "numpy", "factory"} & set(loaded)


def test_it_logs_only_on_request(files: Files, capfd: pytest.CaptureFixture[str]) -> None:
    with LlamaServer(files.base, context=512, threads=1) as server:
        server.log_probs([IDS[:2]])
    assert "".join(capfd.readouterr()) == ""
    with LlamaServer(files.base, context=512, threads=1, logs=True):
        pass
    assert "llama" in "".join(capfd.readouterr())


def test_files_that_cannot_be_loaded_are_one_line_errors(files: Files, tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=r"cannot load .*nothing\.gguf: no such file"):
        LlamaServer(tmp_path / "nothing.gguf")
    (tmp_path / "text.gguf").write_text("not a GGUF file")
    with pytest.raises(ServeError, match=r"cannot load .*text\.gguf: invalid magic characters: 'not ', expected 'GGUF'$"):
        LlamaServer(tmp_path / "text.gguf")
    wide: Any = tiny.llama(width=64)
    write_base_gguf(wide, tiny.tokenizer(), tmp_path / "wide.gguf", "f16", name="wide", license="mit")
    with pytest.raises(ServeError, match=r"cannot load .*wide\.gguf, .*first\.gguf, .*maybe wrong base model"):
        LlamaServer(tmp_path / "wide.gguf", adapters=files.adapters)


def test_a_missing_package_is_a_one_line_error(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(ServeError, match=r"pip install 'student-factory\[serve\]'"):
        LlamaServer(files.base)


def test_lora_choice_lists_every_adapter() -> None:
    assert lora_choice(3, 1) == [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 1.0}, {"id": 2, "scale": 0.0}]
    assert lora_choice(2, None) == [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 0.0}]
    assert lora_choice(0, None) == []
