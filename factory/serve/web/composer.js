// The field for a question, with a choice of models. Enter sends, Shift+Enter starts a new line, Escape stops.

import { element, sayError } from "./element.js";

// composer("chat", {send, stop}): send(question) is awaited, and meanwhile "Stop" replaces "Send".
// Its models(ids, wanted) fills the choice of models; a question that was sent earlier waits for that.
export function composer(name, { send, stop }) {
  const part = (id) => document.getElementById(`${name}-${id}`);
  const [form, input, select, sendButton, stopButton] = ["form", "input", "model", "send", "stop"].map(part);
  let busy = false;
  let early = false; // a question was sent before the models were known

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

// Names first, then versions and aliases. `wanted` is selected, and added if it is a version that is not listed.
function pickModel(select, ids, wanted) {
  const all = [...new Set([...ids, ...(wanted.includes("@") ? [wanted] : [])])];
  const rank = (id) => ({ auto: 0, teacher: 2 })[id] ?? 1;
  const names = all.filter((id) => !id.includes("@")).sort((one, other) => rank(one) - rank(other));
  const group = (label, some) =>
    some.length > 0 && element("optgroup", { label }, some.map((id) => element("option", { value: id }, id)));
  const groups = [group("Models", names), group("Versions and aliases", all.filter((id) => id.includes("@")))];
  select.replaceChildren(...groups.filter(Boolean));
  select.value = all.includes(wanted) ? wanted : (names[0] ?? all[0] ?? "");
}

// One held-out question of each student as a button, to start with.
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
