// Size against fidelity: one mark per version, with its interval as a line.

import { drawing, element } from "./element.js";
import { interval, metricValue, percent, quantity } from "./format.js";

const HEIGHT = 280;
const EDGE = { left: 44, right: 18, top: 30, bottom: 44 };
const SHAPES = ["M0-6A6 6 0 1 1 0 6A6 6 0 1 1 0-6Z", "M-5.5-5.5H5.5V5.5H-5.5Z", "M0-7.5L7 5.5H-7Z", "M0-7.5L7.5 0 0 7.5-7.5 0Z", "M0 7.5L7-5.5H-7Z", "M-2-6.5H2V-2H6.5V2H2V6.5H-2V2H-6.5V-2H-2Z"];

// plotFidelity(figure, students): redrawn whenever the figure's width changes
export function plotFidelity(place, students) {
  const points = students.flatMap((student, series) =>
    student.versions
      .filter((one) => one.metrics.kl)
      .map((one) => ({ one, series, share: one.parameters / one.teacher_parameters, kl: one.metrics.kl })),
  );
  place.hidden = !points.length;
  if (!points.length) return;
  spread(points);
  const frame = place.querySelector(".plot");
  place.observer?.disconnect();
  place.observer = new ResizeObserver(() => frame.replaceChildren(draw(points, frame.clientWidth), legend(points, students)));
  place.observer.observe(frame);
  place.querySelector("figcaption").textContent =
    "Lower is closer to the teacher, further left is smaller. Lines are 95 % intervals; hollow marks failed their gates.";
}

// Versions of the same size are drawn side by side.
function spread(points) {
  const beside = new Map();
  for (const point of points) {
    const size = point.share.toFixed(2);
    point.beside = beside.get(size) ?? 0;
    beside.set(size, point.beside + 1);
  }
  for (const point of points) point.shift = 16 * (point.beside - (beside.get(point.share.toFixed(2)) - 1) / 2);
}

function draw(points, width) {
  const highest = Math.max(...points.map(({ kl }) => Math.max(kl.value, kl.high ?? 0)));
  const step = [0.05, 0.1, 0.2, 0.5, 1, 2, 5].find((one) => highest / one <= 6) ?? highest / 4;
  const top = step * Math.ceil(highest / step);
  const x = (share) => EDGE.left + share * (width - EDGE.left - EDGE.right);
  const y = (kl) => HEIGHT - EDGE.bottom - (kl / top) * (HEIGHT - EDGE.bottom - EDGE.top);
  const text = (attributes, words) => drawing("text", attributes, words);
  const rows = Array.from({ length: Math.round(top / step) + 1 }, (_, index) => index * step);
  return drawing(
    "svg",
    { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "group", "aria-label": "Size against fidelity, one mark per version" },
    rows.map((kl) => drawing("line", { class: kl ? "grid" : "axis", x1: EDGE.left, x2: width - EDGE.right, y1: y(kl), y2: y(kl) })),
    rows.map((kl) => text({ x: EDGE.left - 8, y: y(kl) + 4, "text-anchor": "end" }, kl.toFixed(step < 0.1 ? 2 : 1))),
    [0, 0.25, 0.5, 0.75, 1].map((share) => text({ x: x(share), y: HEIGHT - EDGE.bottom + 18, "text-anchor": "middle" }, `${100 * share}`)),
    text({ x: x(0.5), y: HEIGHT - 6, "text-anchor": "middle" }, "parameters, % of the teacher’s"),
    text({ x: 0, y: 12 }, "KL, nats/token"),
    drawing("circle", { class: "teacher", cx: x(1), cy: y(0), r: 5 }),
    text({ x: x(1) - 10, y: y(0) - 8, "text-anchor": "end", class: "strong" }, "teacher"),
    points.map((point) => mark(point, x(point.share) + point.shift, y)),
  );
}

function mark({ one, series, share, kl }, x, y) {
  const words = `${one.reference}, ${one.verdict}: KL ${metricValue(kl)} [${interval(kl)}], ${quantity(one.parameters)} parameters, ${percent(share)} of the teacher’s`;
  const ends = [kl.low ?? kl.value, kl.high ?? kl.value].map(y);
  return drawing(
    "a",
    { href: `#/students/${one.reference}`, class: `mark series-${series % 8} ${one.verdict}`, "aria-label": words },
    drawing("title", {}, words),
    drawing("line", { x1: x, x2: x, y1: ends[0], y2: ends[1] }),
    drawing("path", { d: SHAPES[series % SHAPES.length], transform: `translate(${x} ${y(kl.value)})` }),
  );
}

function legend(points, students) {
  const shown = students.map((student, series) => ({ student, series })).filter(({ series }) => points.some((one) => one.series === series));
  return element(
    "ul",
    { class: "legend-list" },
    shown.map(({ student, series }) =>
      element(
        "li",
        {},
        drawing(
          "svg",
          { class: `mark series-${series % 8}`, viewBox: "-9 -9 18 18", width: 16, height: 16, "aria-hidden": "true" },
          drawing("path", { d: SHAPES[series % SHAPES.length] }),
        ),
        student.name,
      ),
    ),
  );
}
