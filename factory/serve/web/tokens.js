// An answer token by token, with both models' predictions for the token that is hovered, tapped or reached by arrow keys.

import { element } from "./element.js";
import { percent } from "./format.js";

const panel = document.getElementById("predictions");

// showTokens(agreement) → nodes: the answer, a single stop of the Tab key, and a line with the share of tokens that agree
export function showTokens({ by, tokens }) {
  if (!tokens.length) return [element("p", { class: "quiet" }, "an empty answer")];
  const spans = tokens.map((token) => tokenSpan(token));
  spans[0].tabIndex = 0;
  const answer = element(
    "p",
    { class: "text tokens", role: "group", "aria-label": `The ${by}’s answer, token by token; move with the arrow keys` },
    spans.map((span, index) => [spaceBefore(tokens[index].text), span]),
  );
  answer.addEventListener("keydown", (event) => move(event, spans));
  const agreed = tokens.filter((token) => token.agrees).length;
  const other = by === "student" ? "teacher" : "student";
  const share = element("strong", {}, percent(agreed / tokens.length));
  return [answer, element("p", { class: "quiet" }, share, ` of ${tokens.length} tokens are also the ${other}’s top-1 tokens.`)];
}

// Leading spaces belong to a token but are not coloured, unless it consists of nothing else.
function spaceBefore(text) {
  return text.trim() ? /^\s*/.exec(text)[0] : "";
}

function tokenSpan(token) {
  const span = element(
    "span",
    { class: `token ${token.agrees ? "agree" : "differ"}`, tabindex: -1, "aria-describedby": "predictions" },
    token.text.trimStart() || token.text.replaceAll("\n", "↵\n") || "·", // the dot stands for a part of a character
  );
  span.addEventListener("mouseenter", () => open(token, span));
  span.addEventListener("mouseleave", () => close());
  span.addEventListener("focus", () => open(token, span));
  span.addEventListener("blur", () => close());
  span.addEventListener("click", () => span.focus());
  return span;
}

function move(event, spans) {
  const at = spans.indexOf(document.activeElement);
  const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: spans.length - 1 }[event.key];
  if (event.key === "Escape") close();
  if (to === undefined || at < 0) return;
  event.preventDefault();
  const next = spans[Math.min(spans.length - 1, Math.max(0, to))];
  spans[at].tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

// ------------------------------------------------------------------------------------------------------- the panel

function open(token, span) {
  panel.replaceChildren(
    element("p", {}, element("code", {}, visible(token.text) || "part of a character"), token.agrees ? " is also the other model’s top-1 token" : " is not the other model’s top-1 token"),
    element("div", { class: "two" }, predictions("student", token), predictions("teacher", token)),
  );
  panel.hidden = false;
  place(span.getClientRects()[0] ?? span.getBoundingClientRect());
}

function close() {
  panel.hidden = true;
}

function predictions(who, token) {
  return element(
    "table",
    {},
    element("caption", {}, who),
    element(
      "tbody",
      {},
      token[who].map(([text, p]) => {
        const bar = element("span", { class: "bar" });
        bar.style.width = `${100 * p}%`;
        const word = element("th", { scope: "row" }, element("code", {}, visible(text)));
        return element("tr", { class: text === token.text ? "written" : "" }, word, element("td", {}, bar), element("td", {}, percent(p)));
      }),
    ),
  );
}

// Below the token, or above it where there is no room; on phones the style sheet puts it at the bottom.
function place(token) {
  const { offsetWidth: width, offsetHeight: height } = panel;
  const room = document.documentElement.clientWidth - width - 8;
  const above = token.bottom + height + 12 > innerHeight && token.top > height + 12;
  panel.style.left = `${Math.max(8, Math.min(room, token.left)) + scrollX}px`;
  panel.style.top = `${(above ? token.top - height - 6 : token.bottom + 6) + scrollY}px`;
}

function visible(text) {
  return text.replaceAll("\n", "↵").replaceAll(" ", "␣");
}
