// The table of students and versions, and one version's card. All numbers come from the manifests.

import { getJson } from "./api.js";
import { element, sayError } from "./element.js";
import { plotFidelity } from "./plot.js";
import { day, interval, metricValue, passed, passedOf, percent, quantity } from "./format.js";

const MARKS = { passed: "✓", failed: "✗" };

export async function showStudents() {
  const view = document.getElementById("students");
  try {
    const { students, problems } = await getJson("factory/catalogue");
    const versions = students.flatMap((student) => student.versions);
    const list = document.getElementById("students-list");
    list.replaceChildren(...(students.length ? [table(students)] : [emptyRegistry()]));
    document.getElementById("students-summary").textContent = summary(students, versions);
    sayError(view.querySelector(".error"), problems.join("; "));
    plotFidelity(document.getElementById("students-plot"), students);
  } catch (error) {
    sayError(view.querySelector(".error"), error.message);
  }
}

export async function showCard(reference) {
  const title = document.getElementById("card-title");
  const body = document.getElementById("card-body");
  const problem = document.querySelector("#card .error");
  title.textContent = reference;
  body.replaceChildren();
  sayError(problem);
  try {
    const version = await getJson(`factory/card/${encodeURIComponent(reference)}`);
    title.textContent = version.reference;
    body.replaceChildren(...facts(version));
  } catch (error) {
    sayError(problem, error.message);
  }
}

// ------------------------------------------------------------------------------------------------------- the table

function summary(students, versions) {
  if (!students.length) return "";
  const teachers = new Set(versions.map((version) => version.teacher).filter(Boolean));
  const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
  const teacher = teachers.size === 1 ? `, distilled from ${fileName([...teachers][0])}` : "";
  return `${count(students.length, "student")}, ${count(versions.length, "version")}${teacher}.`;
}

function fileName(reference) {
  return reference.split("/").pop().replace(/\.gguf$/, "");
}

function emptyRegistry() {
  return element("p", {}, "No student has been published yet. Build one: ", element("code", {}, "factory build healthcare"));
}

function table(students) {
  const heading = (text, under = "") =>
    element("th", { scope: "col" }, text, under && element("span", { class: "under" }, under));
  const head = element(
    "tr",
    {},
    element("th", { scope: "col" }, "Version"),
    heading("KL", "nats/token"),
    heading("Golden set", "questions passed"),
    element("th", { scope: "col", class: "wide" }, "Top-1", element("span", { class: "under" }, "agreement")),
    heading("Parameters", "of the teacher’s"),
    element("th", { scope: "col", class: "wide" }, "On disk", element("span", { class: "under" }, "base and adapter")),
    element("th", { scope: "col", class: "wide" }, "Built"),
  );
  return element(
    "table",
    { class: "students" },
    element("caption", { class: "unseen" }, "Students and their versions, newest first"),
    element("thead", {}, head),
    students.map((student) => element("tbody", {}, nameRow(student), student.versions.map((one) => versionRow(one, student)))),
  );
}

function nameRow(student) {
  const actions = element(
    "span",
    { class: "actions" },
    element("a", { href: `#/chat/${student.name}`, "aria-label": `Chat with ${student.name}` }, "Chat"),
    element("a", { href: `#/sides/${student.name}`, "aria-label": `${student.name} and its teacher side by side` }, "Side by side"),
  );
  const title = [element("strong", {}, student.name), element("span", { class: "quiet about" }, student.description)];
  const failed = element("span", { class: "actions quiet" }, "every version failed its gates");
  return element("tr", { class: "name" }, element("th", { colspan: 7, scope: "rowgroup" }, ...title, student.current ? actions : failed));
}

function versionRow(version, student) {
  const { kl, golden_set_passed: golden, golden_set_passed_teacher: teacher, top1_agreement: top1 } = version.metrics;
  const number = (value, under) => [value, under && element("span", { class: "under" }, under)];
  const share = version.teacher_parameters && version.parameters / version.teacher_parameters;
  return element(
    "tr",
    { class: version.reference === student.current ? "current" : "" },
    element(
      "th",
      { scope: "row" },
      element("a", { href: `#/students/${version.reference}`, "aria-label": version.reference }, `@${version.reference.split("@")[1]}`),
      " ",
      badges(version),
    ),
    element("td", {}, ...number(metricValue(kl), interval(kl))),
    element("td", {}, ...number(passedOf(golden), teacher && `teacher ${passed(teacher)}`)),
    element("td", { class: "wide" }, ...number(metricValue(top1), interval(top1))),
    element("td", {}, ...number(quantity(version.parameters), share && percent(share))),
    element("td", { class: "wide" }, ...number(quantity(version.bytes, "B"), version.adapter_bytes && `adapter ${quantity(version.adapter_bytes, "B")}`)),
    element("td", { class: "wide" }, day(version.created)),
  );
}

function badges(version) {
  const mark = MARKS[version.verdict] ?? "";
  const profile = version.profile === "default" ? "" : version.profile;
  return element(
    "span",
    { class: "badges" },
    element("span", { class: `badge ${version.verdict}`, title: version.reasons.join("; ") || null }, `${mark} ${version.verdict}`.trim()),
    version.aliases.map((alias) => element("span", { class: "badge alias" }, alias)),
    profile && element("span", { class: "badge", title: `built with the ${profile} profile` }, profile),
  );
}

// -------------------------------------------------------------------------------------------------------- the card

function facts(version) {
  const tile = (label, value, under) =>
    element("div", {}, element("dt", {}, label), element("dd", {}, value, under && element("span", { class: "under" }, under)));
  const { kl, golden_set_passed: golden, golden_set_passed_teacher: teacher, top1_agreement: top1 } = version.metrics;
  const share = version.teacher_parameters && version.parameters / version.teacher_parameters;
  const card = element("article", { class: "card-text" });
  card.innerHTML = version.html; // made by the server, which escapes all HTML of the card itself
  for (const one of card.querySelectorAll("table, pre")) {
    one.replaceWith(element("div", { class: "scroll", tabindex: 0 }, one.cloneNode(true)));
  }
  return [
    badges(version),
    version.reasons.length > 0 && element("ul", { class: "reasons" }, version.reasons.map((line) => element("li", {}, line))),
    element(
      "dl",
      { class: "tiles" },
      tile("KL, nats/token", metricValue(kl), interval(kl)),
      golden && tile("Golden set", passedOf(golden), teacher && `teacher ${passed(teacher)}`),
      tile("Top-1 agreement", metricValue(top1), interval(top1)),
      tile("Parameters", quantity(version.parameters), share && `${percent(share)} of the teacher’s`),
      tile("On disk", quantity(version.bytes, "B"), version.adapter_bytes && `adapter ${quantity(version.adapter_bytes, "B")}`),
    ),
    element(
      "p",
      { class: "row" },
      element("a", { class: "button main", href: `#/chat/${version.reference}` }, "Chat"),
      element("a", { class: "button", href: `#/sides/${version.reference}` }, "Side by side"),
    ),
    card,
  ].filter(Boolean);
}
