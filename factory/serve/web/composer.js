// The field for a question, with its model, its buttons and its keys: Enter sends, Shift and Enter begins a line, Escape stops.

import { element, sayError } from "./element.js";

// composer("chat", {send, stop}): send(question) is awaited; until it is done there is a button to stop instead of one to send.
// models(ids, wanted) of what it returns fills the choice of models; a question that was sent before waits for it.
export function composer(name, { send, stop }) {
  const part = (id) => document.getElementById(`${name}-${id}`);
  const [form, input, select, sendButton, stopButton] = ["form", "input", "model", "send", "stop"].map(part);
  let busy = false;
  let early = false; // sent before the models were known

  const submit = async () => {
    const question = input.value.trim();
    if (busy || !question) return input.focus();
    early = !select.value;
    if (early) return;
    input.value = "";
    say();
    setBusy(true);
    try {
      await send(question);
    } finally {
      setBusy(false);
    }
  };
  const setBusy = (now) => {
    const focused = document.activeElement;
    busy = now;
    sendButton.hidden = now;
    stopButton.hidden = !now;
    if (focused === sendButton) stopButton.focus();
    if (focused === stopButton) input.focus();
  };
  const models = (ids, wanted) => {
    pickModel(select, ids, wanted);
    if (!early) return;
    early = false;
    submit();
  };
  const say = (message = "") => sayError(form.querySelector(".error"), message);

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  stopButton.addEventListener("click", stop);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && busy) stop();
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  });
  return { input, select, models, say, submit };
}

// ["auto", "healthcare-small", ...]: names first, then versions; wanted may be a version of its own
function pickModel(select, ids, wanted) {
  const every = [...new Set([...ids, ...(wanted.includes("@") ? [wanted] : [])])];
  const place = (id) => ({ auto: 0, teacher: 2 })[id] ?? 1;
  const names = every.filter((id) => !id.includes("@")).sort((one, other) => place(one) - place(other));
  const group = (label, some) =>
    some.length > 0 && element("optgroup", { label }, some.map((id) => element("option", { value: id }, id)));
  const groups = [group("Models", names), group("Versions and aliases", every.filter((id) => id.includes("@")))];
  select.replaceChildren(...groups.filter(Boolean));
  select.value = every.includes(wanted) ? wanted : (names[0] ?? every[0] ?? "");
}

// Held-out questions of each student, to begin with one tap.
export function questions(list, students, form) {
  const some = students.flatMap((student) => student.questions.slice(0, 1)).slice(0, 4);
  const ask = (question) => () => {
    form.input.value = question;
    form.submit();
  };
  list.replaceChildren(
    ...[...new Set(some)].map((question) => element("li", {}, element("button", { type: "button", onclick: ask(question) }, question))),
  );
}
