// A conversation with one model. Answers are streamed; each says which version gave it and why.

import { chat, getJson, header } from "./api.js";
import { composer, questions } from "./composer.js";
import { element } from "./element.js";
import { decimals } from "./format.js";

const MAX_EXCHANGES = 3; // sent along with a question: small models do no better with more, and prompts are limited
const messages = []; // of the whole conversation
const form = composer("chat", { send, stop: () => controller.abort() });
const log = document.getElementById("chat-log");
const newChat = document.getElementById("chat-new");
let controller = new AbortController();

newChat.addEventListener("click", () => {
  controller.abort();
  messages.length = 0;
  log.replaceChildren();
  newChat.hidden = true;
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
  newChat.hidden = false;
  controller = new AbortController();
  const text = element("p", { class: "text" });
  const about = element("p", { class: "about quiet" });
  const answer = element("article", { class: "answer", "aria-busy": "true" }, text, about);
  const asked = element("p", { class: "asked" }, question);
  log.append(asked, answer);
  about.textContent = "…";
  const turn = { role: "user", content: question };
  try {
    await stream(model, [...messages.slice(-2 * MAX_EXCHANGES), turn], text, about);
  } catch (error) {
    if (error.name !== "AbortError") {
      about.replaceChildren(element("span", { class: "problem" }, error.message));
      if (!text.textContent) form.input.value ||= question;
    } else about.append(element("span", {}, text.textContent ? " · stopped" : "stopped"));
  }
  if (text.textContent) messages.push(turn, { role: "assistant", content: text.textContent });
  answer.removeAttribute("aria-busy");
}

async function stream(model, sent, text, about) {
  let started = 0;
  for await (const part of chat({ model, messages: sent }, controller.signal)) {
    if (part.headers) about.replaceChildren(...provenance(model, part.headers));
    if (part.text) {
      started ||= performance.now();
      text.append(part.text);
      scrollAlong();
    }
    if (part.truncated) about.append(" · truncated at the server’s limit");
    if (part.usage) about.append(speed(part.usage.completion_tokens, performance.now() - started));
  }
  const notice = about.querySelector(".notice-text");
  if (notice && text.textContent.includes(notice.textContent)) notice.remove(); // the server appended it to the answer
  scrollAlong();
}

// Unless the reader has scrolled up.
function scrollAlong() {
  const { scrollHeight, scrollTop, clientHeight } = document.documentElement;
  if (scrollHeight - scrollTop - clientHeight < 160) scrollTo(0, scrollHeight);
}

function provenance(model, headers) {
  const of = (name) => header(headers, name);
  const parts = [element("strong", {}, of("version") || model)];
  if (of("cascade") && !of("score")) parts.push(of("why").replace("named in the request; ", ""));
  if (of("score")) {
    const [score, threshold] = [of("score"), of("threshold")].map((value) => decimals(Number(value)));
    const reason = of("why") || `routed to ${of("domain")} with score ${score}`;
    const numbers = [reason.includes(score) ? "" : `score ${score}`, reason.includes(threshold) ? "" : `threshold ${threshold}`];
    parts.push([reason, ...numbers.filter(Boolean)].join(", "));
  }
  if (of("cascade")) parts.push(`asked ${of("cascade")}`);
  if (of("cost")) parts.push(`cost ${of("cost")}`);
  const notice = of("notice");
  const line = parts.flatMap((part, index) => (index ? [" · ", part] : [part]));
  return [notice && element("span", { class: "notice-text" }, notice), element("span", { class: "by" }, ...line)].filter(Boolean);
}

function speed(tokens, milliseconds) {
  const rate = milliseconds > 0 && tokens > 1 ? ` · ${Math.round((1000 * tokens) / milliseconds)} tokens/s` : "";
  return element("span", {}, ` · ${tokens} tokens${rate}`);
}
