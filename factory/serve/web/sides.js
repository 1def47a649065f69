// The same question to a student and to its teacher, each answer coloured by what the other would have written.

import { chat, fact, getJson, postJson } from "./api.js";
import { composer, questions } from "./composer.js";
import { element } from "./element.js";
import { showTokens } from "./tokens.js";

const form = composer("sides", { send, stop: () => stopped.abort() });
const place = { student: document.getElementById("sides-student"), teacher: document.getElementById("sides-teacher") };
let stopped = new AbortController();

export async function showSides(student) {
  form.input.focus({ preventScroll: true });
  try {
    const { students } = await getJson("factory/catalogue");
    const names = students.filter((one) => one.current).map((one) => one.name);
    const ids = [...names, ...students.flatMap((one) => one.versions.map((version) => version.reference))];
    form.models(ids, student || form.select.value);
    questions(document.querySelector("#sides .questions"), students.filter((one) => one.name === form.select.value.split("@")[0]), form);
    if (!ids.length) form.say("no student is published yet: factory build healthcare");
  } catch (error) {
    form.say(error.message);
  }
}

async function send(question) {
  stopped = new AbortController();
  const { signal } = stopped;
  const model = form.select.value;
  document.querySelector("#sides .questions").hidden = true;
  document.getElementById("sides-answers").hidden = false;
  document.getElementById("sides-question").textContent = question;
  document.getElementById("sides-student-title").textContent = model;
  await Promise.all([
    write(place.student, () => ofStudent(model, question, signal)),
    write(place.teacher, () => ofTeacher(model, question, signal)),
  ]);
}

async function write(side, fill) {
  side.setAttribute("aria-busy", "true");
  try {
    await fill();
  } catch (error) {
    const line = error.name === "AbortError" ? "stopped" : error.message;
    side.append(element("p", { class: error.name === "AbortError" ? "quiet" : "problem" }, line));
  }
  side.removeAttribute("aria-busy");
}

// Streamed by the server as any application gets it, then read again by both models.
async function ofStudent(model, question, signal) {
  const text = element("p", { class: "text" });
  const about = element("p", { class: "quiet" }, "writing …");
  place.student.replaceChildren(text, about);
  let notice = "";
  for await (const part of chat({ model, messages: [{ role: "user", content: question }] }, signal)) {
    if (part.headers) {
      document.getElementById("sides-student-title").textContent = fact(part.headers, "version") || model;
      notice = fact(part.headers, "notice");
    }
    if (part.text) text.append(part.text);
  }
  about.textContent = "comparing …";
  const own = notice ? text.textContent.replace(notice, "").trimEnd() : text.textContent; // neither of them wrote the notice
  const found = await postJson("factory/agreement", { model, prompt: question, text: own }, signal);
  place.student.replaceChildren(...showTokens(found));
}

// Written where it is compared: there the teacher reads its domain's context first, as it did when the student learnt from it.
async function ofTeacher(model, question, signal) {
  place.teacher.replaceChildren(element("p", { class: "quiet" }, "writing, after its domain’s context …"));
  const found = await postJson("factory/agreement", { model, prompt: question, by: "teacher" }, signal);
  place.teacher.replaceChildren(...showTokens(found));
}
