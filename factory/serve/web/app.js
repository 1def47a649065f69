// Shows the view of the address: #/, #/students/REFERENCE, #/chat/MODEL or #/sides/STUDENT.

import { showCard, showStudents } from "./catalogue.js";
import { showChat } from "./chat.js";
import { showSides } from "./sides.js";

const VIEWS = { students: showStudents, card: showCard, chat: showChat, sides: showSides };
const TITLES = { students: "Students", card: "", chat: "Chat", sides: "Side by side" };

function show(first) {
  if (!location.hash.startsWith("#/") && location.hash) return;
  const [place, ...rest] = location.hash.slice(2).split("/").map(decodeURIComponent);
  const reference = rest.join("/");
  const view = place === "students" && reference ? "card" : place in VIEWS && place !== "card" ? place : "students";
  for (const name of Object.keys(VIEWS)) document.getElementById(name).hidden = name !== view;
  for (const link of document.querySelectorAll("nav a")) {
    const current = link.dataset.view === view || (view === "card" && link.dataset.view === "students");
    if (current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${TITLES[view] || reference} · Student factory`;
  if (!first) {
    scrollTo(0, 0);
    document.getElementById(`${view}-title`).focus();
  }
  VIEWS[view](reference);
}

addEventListener("hashchange", () => show(false));
show(true);
