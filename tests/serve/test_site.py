"""The page in headless Chromium, with a scripted chat behind it; and the routes that it reads."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from hashlib import sha256
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import StreamingResponse
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright
from support import tiny
from support.serving import publish_again
from support.workplace import Workplace

from factory.config.load import load_specs
from factory.registry.manifest import MetricValue, Verdict
from factory.registry.registry import Registry
from factory.serve.agreement import Agreements
from factory.serve.auth import Caller, Keys
from factory.serve.errors import HANDLERS
from factory.serve.limits import APIError
from factory.serve.site import STATIC, site

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
XSS = "<script>window.attacked = 1</script><img src=x onerror='window.attacked = 2'> [x](javascript:attacked())"
NOTICE = "This is general information, not advice on plants."
ANSWER = "the early signs are cough and wheeze"
KEYS = Keys(
    (
        Caller(key=sha256(b"plants-key").hexdigest()),
        Caller(frozenset({"stars-mini"}), key=sha256(b"stars-key").hexdigest()),
    )
)

expect.set_options(timeout=30_000)


@dataclass
class Script:
    """A chat endpoint that does what the question says and records its requests."""

    asked: list[dict[str, Any]] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)  # the client of an endless answer has disconnected

    def routes(self, allowed: Any) -> APIRouter:
        router = APIRouter(prefix="/v1")

        @router.get("/models")
        def models(_: Any = allowed) -> dict[str, Any]:
            return {
                "data": [
                    {"id": name}
                    for name in ("plants-mini", "plants-mini@champion", "plants-mini@1", "plants", "teacher", "auto")
                ]
            }

        @router.post("/chat/completions")
        async def chat(request: Request, _: Any = allowed) -> StreamingResponse:
            body = await request.json()
            self.asked.append(body)
            question = body["messages"][-1]["content"]
            if question == "refuse":
                raise APIError(400, "the prompt is 1,100 tokens long, at most 1,024 are read", code="prompt_too_long")
            headers = {"x-factory-version": "plants-mini@1", "x-factory-domain": "plants", "x-factory-notice": NOTICE}
            if body["model"] == "plants":
                headers |= {
                    "x-factory-why": "named in the request; plants-mini%401 was sure enough",
                    "x-factory-cost": "0.0042",
                }
                headers["x-factory-cascade"] = "plants-tiny%401 0.41 < 0.62, plants-mini%401 0.71 >= 0.62"
            if body["model"] == "auto":
                why = {"x-factory-why": "the router says plants with 0.712", "x-factory-score": "0.7123"}
                headers |= {**why, "x-factory-threshold": "0.4511"}
            return StreamingResponse(self._events(question), media_type="text/event-stream", headers=headers)

        return router

    async def _events(self, question: str) -> AsyncIterator[str]:
        yield event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        try:
            for word in [XSS] if question == "attack" else ANSWER.split():
                yield event({"choices": [{"index": 0, "delta": {"content": f"{word} "}}]})
            if question.startswith("what are"):  # as with append_notice; the comparison must ignore it
                yield event({"choices": [{"index": 0, "delta": {"content": f"\n\n{NOTICE}"}}]})
            if question == "break":
                yield event({"error": {"message": "the engine failed", "type": "server_error", "param": None, "code": None}})
                return
            while question == "endless":
                yield event({"choices": [{"index": 0, "delta": {"content": "and "}}]})
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.left.set()
            raise
        yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        yield event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16}})
        yield "data: [DONE]\n\n"


def event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def registry(built: Workplace) -> Registry:
    """plants-mini@1, and plants-mini@2: with a golden set, failed, and with a card that attacks its reader."""
    here = Registry(built.root / "registry")
    manifest = here.resolve("plants-mini@1").manifest
    assert manifest.kind == "student"
    evaluation = manifest.evaluation
    golden = {"golden_set_passed": MetricValue(0.7, 0.5, 0.9, 20), "golden_set_passed_teacher": MetricValue(0.9, 0.8, 1, 20)}
    publish_again(
        here,
        evaluation=evaluation.model_copy(update={"metrics": {**evaluation.metrics, **golden}}),
        verdict=Verdict(status="failed", reasons=("KL(teacher ‖ student), nats/token: 2.500 > 0.1",)),
        card=f"# plants-mini\n\nBefore. {XSS}\n\n{XSS}\n\n## {XSS}\n\n| a |\n|:-:|\n| {XSS} |\n",
    )
    here.promote("plants-mini@1", override="a test")
    return here


@pytest.fixture(scope="module")
def agreements(built: Workplace, registry: Registry) -> Agreements:
    return Agreements(registry, load_specs(built.domains), tiny.CPU)


@pytest.fixture(scope="module")
def script() -> Script:
    return Script()


def app_of(registry: Registry, agreements: Agreements, script: Script, keys: Keys) -> FastAPI:
    def caller(request: Request) -> Caller:
        return keys.caller(request.headers.get("authorization"), date.today())

    app = FastAPI(exception_handlers=HANDLERS, docs_url=None, redoc_url=None)
    app.include_router(script.routes(Depends(caller)))
    app.include_router(site(registry, agreements, guard=caller))
    return app


@pytest.fixture(scope="module")
def url(registry: Registry, agreements: Agreements, script: Script) -> Iterator[str]:
    with served(app_of(registry, agreements, script, Keys())) as address:
        yield address


@pytest.fixture(scope="module")
def locked(registry: Registry, agreements: Agreements, script: Script) -> Iterator[str]:
    with served(app_of(registry, agreements, script, KEYS)) as address:
        yield address


# ------------------------------------------------------------------------------------------------------------- routes


def error_of(response: httpx.Response) -> dict[str, Any]:
    assert list(response.json()) == ["error"]
    error: dict[str, Any] = response.json()["error"]
    assert list(error) == ["message", "type", "param", "code"] and "\n" not in error["message"]
    return error


def test_the_page_loads_nothing_from_elsewhere_and_nothing_inline(url: str) -> None:
    page = httpx.get(url)
    policy = page.headers["content-security-policy"]
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in policy and "unsafe" not in policy
    docs = httpx.get(f"{url}/docs")
    assert docs.text == (STATIC / "docs.html").read_text() and docs.headers["content-security-policy"] == policy
    for path in STATIC.iterdir():
        found = httpx.get(f"{url}/static/{path.name}")
        assert found.content == path.read_bytes() and found.headers["content-security-policy"] == policy
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")  # a namespace, never fetched
        assert "://" not in text and not re.search(r"""["'(`=]//""", text), path.name  # no other host, by any scheme
        assert not re.search(r"<script(?! type=\"module\" src=)|\son\w+=\"|style=\"", text), path.name
    assert {path.suffix for path in STATIC.iterdir()} == {".html", ".css", ".js", ".svg"}


def test_only_the_page_s_own_files_are_served(url: str) -> None:
    for name in ("nothing.js", "..%2fsite.py", "%2e%2e%2fsite.py", "%2fetc%2fpasswd"):
        response = httpx.get(f"{url}/static/{name}")
        assert response.status_code == 404 and "import" not in response.text


def test_the_catalogue_and_a_card_as_json(url: str) -> None:
    (student,) = httpx.get(f"{url}/factory/catalogue").json()["students"]
    assert [one["reference"] for one in student["versions"]] == ["plants-mini@2", "plants-mini@1"]
    card = httpx.get(f"{url}/factory/card/plants-mini@champion").json()
    assert card["reference"] == "plants-mini@1" and card["html"].startswith("<p>A small language model")
    missing = httpx.get(f"{url}/factory/card/nobody")
    assert missing.status_code == 404 and error_of(missing)["code"] == "model_not_found"


def test_agreement_as_json(url: str) -> None:
    found = httpx.post(f"{url}/factory/agreement", json={"model": "plants-mini", "prompt": "what ?", "text": ANSWER}).json()
    assert (found["reference"], found["teacher"], found["by"]) == ("plants-mini@1", "path:./teacher", "student")
    assert "".join(token["text"] for token in found["tokens"]) == ANSWER
    for token in found["tokens"]:
        assert set(token) == {"text", "agrees", "student", "teacher"}
        for who in ("student", "teacher"):
            shares = [share for _, share in token[who]]
            assert len(shares) == 5 and shares == sorted(shares, reverse=True) and sum(shares) <= 1


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "nobody", "prompt": "what ?"}, 404, "nobody"),
        ({"model": "default-mini-base", "prompt": "what ?"}, 400, "only a student can be compared"),
        ({"model": "plants-mini", "prompt": " "}, 400, "the question is empty"),
        ({"model": "plants-mini"}, 400, "prompt: Field required"),
        ({"model": "plants-mini", "prompt": "what ?", "by": "me"}, 400, "by: Input should be 'student' or 'teacher'"),
        ({"model": "plants-mini", "prompt": "a " * 600, "text": ""}, 400, "the limit is 512"),
    ],
)
def test_impossible_comparisons_are_errors_in_openai_s_shape(url: str, body: dict[str, Any], status: int, message: str) -> None:
    response = httpx.post(f"{url}/factory/agreement", json=body, timeout=30)
    assert response.status_code == status and message in error_of(response)["message"]


def test_a_key_opens_only_its_students_and_the_page_needs_none(locked: str) -> None:
    assert httpx.get(locked).status_code == 200
    asked = {"model": "plants-mini", "prompt": "what ?", "text": "light"}

    def both(key: str | None) -> list[int]:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        reads = [httpx.get(f"{locked}/factory/{path}", headers=headers) for path in ("catalogue", "card/plants-mini")]
        posted = httpx.post(f"{locked}/factory/agreement", json=asked, headers=headers, timeout=30)
        return [response.status_code for response in (*reads, posted)]

    assert both(None) == both("another") == [401, 401, 401]
    assert both("plants-key") == [200, 200, 200]
    assert both("stars-key") == [200, 403, 403]
    own = httpx.get(f"{locked}/factory/catalogue", headers={"authorization": "Bearer stars-key"}).json()
    assert own["students"] == []


# --------------------------------------------------------------------------------------------------------------- looks


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_has_enough_contrast(scheme: int) -> None:
    block = re.findall(r":root \{(.*?)\}", (STATIC / "style.css").read_text(), flags=re.DOTALL)[scheme]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", block))
    on = {"paper": "ink muted link good bad note", "card": "ink muted link", "good-tint": "ink good", "bad-tint": "bad"}
    pairs = [(text, under) for under, texts in {**on, "note-tint": "ink", "link": "on-link"}.items() for text in texts.split()]
    for text, under in pairs:
        low, high = sorted((luminance(colours[text]), luminance(colours[under])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, under)  # WCAG 2.2, level AA


# ---------------------------------------------------------------------------------------------------------- in Chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A desktop window. Errors and warnings on its console fail the test, except for statuses that tests provoke."""
    context = browser.new_context(viewport=DESKTOP)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda one: complaints.append(one.url) if one.failure != "net::ERR_ABORTED" else None)
    yield page
    context.close()
    refused = re.compile(r"Failed to load resource: the server responded with a status of (400|401|404)")
    assert [line for line in complaints if not refused.match(line)] == []


def fits(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"))


@in_chromium
def test_clicking_from_the_catalogue_to_a_card_to_a_chat(page: Page, url: str) -> None:
    page.goto(url)
    rows = page.locator("table.students tbody tr")
    expect(rows).to_have_count(3)
    expect(rows.nth(0)).to_contain_text("plants-mini")
    expect(rows.nth(1)).to_contain_text("✗ failed")
    expect(rows.nth(1)).to_contain_text("14 of 20teacher 18")
    expect(rows.nth(2)).to_contain_text("champion")
    kl = httpx.get(f"{url}/factory/catalogue").json()["students"][0]["versions"][1]["metrics"]["kl"]
    expect(rows.nth(2)).to_contain_text(f"{kl['value']:.3f}{kl['low']:.3f}\N{EN DASH}{kl['high']:.3f}")
    expect(page.locator(".plot a.mark")).to_have_count(2)
    expect(page.locator(".plot a.mark").nth(0)).to_have_attribute("aria-label", re.compile(r"plants-mini@2, failed: KL \d"))
    page.get_by_role("link", name="plants-mini@1", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("plants-mini@1")
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    expect(page.locator(".card-text")).to_contain_text("How close it is to its teacher")
    page.locator("#card").get_by_role("link", name="Chat").click()
    expect(page.locator("#chat-model")).to_have_value("plants-mini@1")
    assert page.title() == "Chat · Student factory"
    page.go_back()
    expect(page.locator(".card-text")).to_be_visible()


@in_chromium
def test_an_attack_in_a_card_is_shown_as_text(page: Page, url: str) -> None:
    page.goto(f"{url}/#/students/plants-mini@2")
    card = page.locator(".card-text")
    expect(card).to_contain_text("Before. <script>window.attacked = 1</script><img src=x onerror='window.attacked = 2'>")
    expect(card.locator("h3")).to_contain_text("<script>")
    assert page.locator("main script, .card-text img, a[href^=javascript]").count() == 0
    assert page.evaluate("window.attacked") is None


@in_chromium
def test_an_attack_in_an_answer_is_shown_as_text(page: Page, url: str) -> None:
    page.goto(f"{url}/#/chat")
    page.fill("#chat-input", "attack")
    page.keyboard.press("Enter")
    expect(page.locator(".answer .text")).to_contain_text("<script>window.attacked = 1</script>")
    assert page.evaluate("window.attacked") is None


@in_chromium
def test_a_chat_with_a_cascade_says_who_was_asked_and_what_it_cost(page: Page, url: str) -> None:
    page.goto(f"{url}/#/chat/plants")
    expect(page.locator("#chat-model")).to_have_value("plants")
    page.fill("#chat-input", "hello")
    page.keyboard.press("Enter")
    about = page.locator(".answer:not([aria-busy]) .about")
    expect(about).to_contain_text(
        "plants-mini@1 · plants-mini@1 was sure enough · asked plants-tiny@1 0.41 < 0.62, plants-mini@1"
    )
    expect(about).to_contain_text("0.71 >= 0.62 · cost 0.0042 ·")


@in_chromium
def test_a_chat_streams_and_says_who_answered_and_why(page: Page, url: str, script: Script) -> None:
    page.goto(f"{url}/#/chat")
    expect(page.locator("#chat-input")).to_be_focused()
    expect(page.locator("#chat-model")).to_have_value("auto")
    page.keyboard.type("first line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second line")
    page.keyboard.press("Enter")
    answer = page.locator(".answer:not([aria-busy])")
    expect(answer.locator(".text")).to_have_text(ANSWER)
    expect(answer.locator(".about")).to_contain_text(
        "plants-mini@1 · the router says plants with 0.712, threshold 0.451 · 7 tokens"
    )
    expect(answer.locator(".notice-text")).to_have_text(NOTICE)
    expect(page.locator("#chat-input")).to_be_focused()
    page.locator("#chat-model").select_option("teacher")
    page.locator("#chat-input").fill("and then?")
    page.get_by_role("button", name="Send").click()
    expect(answer).to_have_count(2)
    asked = script.asked[-1]
    assert asked["model"] == "teacher" and asked["stream"] is True
    said = [(turn["role"], turn["content"].strip()) for turn in asked["messages"]]
    assert said == [("user", "first line\nsecond line"), ("assistant", ANSWER), ("user", "and then?")]
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".answer")).to_have_count(0)


@in_chromium
@pytest.mark.parametrize("way", ["button", "key"])
def test_stopping_an_answer_keeps_its_text_and_disconnects(page: Page, url: str, script: Script, way: str) -> None:
    script.left.clear()
    page.goto(f"{url}/#/chat")
    page.fill("#chat-input", "endless")
    page.keyboard.press("Enter")
    expect(page.locator(".answer .text")).to_contain_text("wheeze and and")
    if way == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    expect(page.locator(".answer:not([aria-busy]) .about")).to_contain_text("stopped")
    expect(page.locator(".answer .text")).to_contain_text("wheeze and and")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert script.left.wait(30)  # the server noticed and can free its engine


@in_chromium
@pytest.mark.parametrize(
    ("question", "line", "kept"),
    [
        ("refuse", "the prompt is 1,100 tokens long, at most 1,024 are read", ""),
        ("break", "the engine failed", ANSWER),
    ],
)
def test_an_error_is_one_line_and_the_chat_continues(page: Page, url: str, question: str, line: str, kept: str) -> None:
    page.goto(f"{url}/#/chat")
    page.fill("#chat-input", question)
    page.keyboard.press("Enter")
    expect(page.locator(".answer .problem")).to_have_text(line)
    expect(page.locator(".answer .text")).to_have_text(kept)
    page.fill("#chat-input", "go on")
    page.keyboard.press("Enter")
    expect(page.locator(".answer:not([aria-busy]) .text").nth(1)).to_have_text(ANSWER)


@in_chromium
def test_an_unknown_version_is_one_line(page: Page, url: str) -> None:
    page.goto(f"{url}/#/students/plants-mini@9")
    expect(page.locator("#card .error")).to_contain_text("plants-mini has no version 9")


@in_chromium
def test_student_and_teacher_side_by_side_with_their_predictions(page: Page, url: str) -> None:
    page.goto(f"{url}/#/sides/plants-mini@1")
    expect(page.locator("#sides-model")).to_have_value("plants-mini@1")
    page.fill("#sides-input", "what are the signs of oak ?")
    page.keyboard.press("Enter")
    student, teacher = page.locator("#sides-student .tokens"), page.locator("#sides-teacher .tokens")
    expect(student).to_have_text(ANSWER)
    expect(teacher).to_be_visible()
    expect(page.locator("#sides-student-title")).to_have_text("plants-mini@1")
    asked = {"model": "plants-mini@1", "prompt": "what are the signs of oak ?", "text": ANSWER}
    scored = httpx.post(f"{url}/factory/agreement", json=asked, timeout=30).json()["tokens"]
    expect(student.locator(".token")).to_have_count(len(scored))
    expect(student.locator(".agree")).to_have_count(sum(token["agrees"] for token in scored))
    predictions = page.get_by_role("tooltip")
    expect(predictions).to_be_hidden()
    student.locator(".token").nth(1).hover()
    expect(predictions.locator("table").nth(0).locator("tr")).to_have_count(5)
    share = scored[1]["teacher"][0][1]
    expect(predictions.locator("table").nth(1).locator("tr").nth(0)).to_contain_text(f"{100 * share:.1f}")
    page.mouse.move(0, 0)
    expect(predictions).to_be_hidden()


@in_chromium
def test_predictions_by_keyboard(page: Page, url: str) -> None:
    page.goto(f"{url}/#/sides")
    page.fill("#sides-input", "what are the signs of oak ?")
    page.keyboard.press("Enter")
    tokens = page.locator("#sides-student .token")
    expect(tokens.nth(0)).to_have_attribute("tabindex", "0")
    expect(page.locator("#sides-teacher .tokens")).to_be_visible()
    page.locator("#sides-send").focus()
    page.keyboard.press("Tab")
    expect(tokens.nth(0)).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(2)).to_be_focused()
    expect(page.get_by_role("tooltip")).to_be_visible()
    page.keyboard.press("End")
    expect(tokens.last).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("tooltip")).to_be_hidden()
    page.keyboard.press("Tab")
    expect(page.locator("#sides-teacher .token").nth(0)).to_be_focused()  # one stop per answer, not one per token


@in_chromium
@pytest.mark.parametrize(("view", "answer"), [("sides", "#sides-student .token"), ("chat", "#chat-log .by")])
def test_a_question_sent_before_the_models_are_known_waits_for_them(page: Page, url: str, view: str, answer: str) -> None:
    held: list[Route] = []
    page.route("**/factory/catalogue", lambda route: held.append(route))
    with page.expect_request("**/factory/catalogue"):
        page.goto(f"{url}/#/{view}")
    page.fill(f"#{view}-input", "what are the signs of oak ?")
    page.keyboard.press("Enter")
    expect(page.locator(f"#{view}-input")).to_have_value("what are the signs of oak ?")
    expect(page.locator(answer)).to_have_count(0)
    held.pop().continue_()
    expect(page.locator(answer).first).to_be_visible()
    expect(page.locator(f"#{view}-input")).to_have_value("")
    expect(page.locator(".problem")).to_have_count(0)


@in_chromium
def test_the_whole_page_by_keyboard(page: Page, url: str) -> None:
    page.goto(url)
    expect(page.locator("table.students")).to_be_visible()
    names = ["Student factory", "Students", "Chat", "Side by side", "API", "Chat with plants-mini"]
    names += ["plants-mini and its teacher side by side", "plants-mini@2", "plants-mini@1", "plants-mini@2, failed"]
    for name in names:
        page.keyboard.press("Tab")
        said = page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent.trim()")
        assert said.startswith(name)
    page.keyboard.press("Enter")  # marks of the plot are links
    expect(page.get_by_role("heading", level=1)).to_have_text("plants-mini@2")


@in_chromium
def test_the_description_of_the_api_loads_nothing_from_elsewhere(page: Page, url: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    page.get_by_role("link", name="API").click()
    expect(page.get_by_role("heading", name="POST /factory/agreement")).to_be_visible()
    row = page.get_by_role("row").filter(has_text="Who wrote, or writes, the answer.")
    expect(row).to_contain_text('"student", "teacher"')
    assert all(one.startswith(f"{url}/") for one in asked) and f"{url}/openapi.json" in asked


@in_chromium
def test_a_key_is_asked_for_once_and_kept_in_memory_only(page: Page, locked: str) -> None:
    page.goto(f"{locked}/#/chat")
    field = page.get_by_label("API key")
    expect(field).to_be_focused()
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#key-reason")).to_contain_text("unknown API key")
    field.fill("plants-key")
    page.keyboard.press("Enter")
    expect(page.locator("#key")).to_be_hidden()
    expect(page.locator("#chat-model option").nth(0)).to_have_text("auto")
    page.fill("#chat-input", "hello")
    page.keyboard.press("Enter")
    expect(page.locator(".answer .text")).to_have_text(ANSWER)
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    page.reload()
    expect(page.locator("#key")).to_be_visible()


@in_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_fits_a_phone(page: Page, url: str, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size(PHONE)
    for place, ready in (
        ("#/", ".plot svg"),
        ("#/students/plants-mini@1", ".card-text table"),
        ("#/students/plants-mini@2", ".card-text table"),
        ("docs", ".operation"),
        ("#/chat", "#chat .questions button"),
        ("#/sides", "#sides .questions button"),
    ):
        page.goto(f"{url}/{place}")
        expect(page.locator(ready).first).to_be_visible()
        assert fits(page), place
    page.fill("#sides-input", "what are the signs of oak ?")
    page.keyboard.press("Enter")
    page.locator("#sides-student .token").nth(1).click()
    predictions = page.get_by_role("tooltip").bounding_box()
    assert predictions is not None and predictions["x"] >= 0 and predictions["x"] + predictions["width"] <= PHONE["width"]
    expect(page.locator("#sides-teacher .tokens")).to_be_visible()
    assert fits(page)
    page.goto(f"{url}/#/chat")
    page.fill("#chat-input", "unbroken" * 40)
    page.keyboard.press("Enter")
    expect(page.locator(".answer .text")).to_have_text(ANSWER)
    assert fits(page)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 31)"}[scheme]
