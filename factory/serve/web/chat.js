// A conversation with one model, streamed; each answer says which version gave it and why.

import { chat, fact, getJson } from "./api.js";
import { composer, questions } from "./composer.js";
import { element } from "./element.js";
import { decimals } from "./write.js";

const REMEMBERED = 3; // exchanges that a question is sent with: small models lose the thread of more, and prompts are bounded
const turns = []; // what was said, as the API wants it
const form = composer("chat", { send, stop: () => stopped.abort() });
const log = document.getElementById("chat-log");
const fresh = document.getElementById("chat-new");
let stopped = new AbortController();

fresh.addEventListener("click", () => {
  stopped.abort();
  turns.length = 0;
  log.replaceChildren();
  fresh.hidden = true;
  document.getElementById("chat-welcome").hidden = false;
  form.input.focus();
});

export async function showChat(model) {
  form.input.focus({ preventScroll: true });
  try {
    const [{ data }, { students }] = await Promise.all([getJson("v1/models"), getJson("factory/catalogue")]);
    form.models(data.map((one) => one.id), model || form.select.value || "auto");
    questions(document.querySelector("#chat .questions"), students, form);
  } catch (error) {
    form.say(error.message);
  }
}

async function send(question) {
  const model = form.select.value;
  document.getElementById("chat-welcome").hidden = true;
  fresh.hidden = false;
  stopped = new AbortController();
  const text = element("p", { class: "text" });
  const about = element("p", { class: "about quiet" });
  const answer = element("article", { class: "answer", "aria-busy": "true" }, text, about);
  const asked = element("p", { class: "asked" }, question);
  log.append(asked, answer);
  about.textContent = "…";
  const turn = { role: "user", content: question };
  try {
    await stream(model, [...turns.slice(-2 * REMEMBERED), turn], text, about);
  } catch (error) {
    if (error.name !== "AbortError") {
      about.replaceChildren(element("span", { class: "problem" }, error.message));
      if (!text.textContent) form.input.value ||= question;
    } else about.append(element("span", {}, text.textContent ? " · stopped" : "stopped"));
  }
  if (text.textContent) turns.push(turn, { role: "assistant", content: text.textContent });
  answer.removeAttribute("aria-busy");
}

async function stream(model, messages, text, about) {
  let begun = 0;
  for await (const part of chat({ model, messages }, stopped.signal)) {
    if (part.headers) about.replaceChildren(...why(model, part.headers));
    if (part.text) {
      begun ||= performance.now();
      text.append(part.text);
      follow();
    }
    if (part.cut) about.append(" · cut at the server’s limit");
    if (part.usage) about.append(speed(part.usage.completion_tokens, performance.now() - begun));
  }
  const notice = about.querySelector(".notice-text");
  if (notice && text.textContent.includes(notice.textContent)) notice.remove(); // the server put it at the answer's end
  follow();
}

// Whoever scrolled up to read stays there.
function follow() {
  const { scrollHeight, scrollTop, clientHeight } = document.documentElement;
  if (scrollHeight - scrollTop - clientHeight < 160) scrollTo(0, scrollHeight);
}

function why(model, headers) {
  const of = (name) => fact(headers, name);
  const parts = [element("strong", {}, of("version") || model)];
  if (of("score")) {
    const [score, threshold] = [of("score"), of("threshold")].map((value) => decimals(Number(value)));
    const reason = of("why") || `the router says ${of("domain")} with ${score}`;
    const figures = [reason.includes(score) ? "" : `score ${score}`, reason.includes(threshold) ? "" : `threshold ${threshold}`];
    parts.push([reason, ...figures.filter(Boolean)].join(", "));
  }
  const notice = of("notice");
  const line = parts.flatMap((part, index) => (index ? [" · ", part] : [part]));
  return [notice && element("span", { class: "notice-text" }, notice), element("span", { class: "by" }, ...line)].filter(Boolean);
}

function speed(tokens, milliseconds) {
  const rate = milliseconds > 0 && tokens > 1 ? ` · ${Math.round((1000 * tokens) / milliseconds)} tokens/s` : "";
  return element("span", {}, ` · ${tokens} tokens${rate}`);
}
