// Numbers as the factory's own tables write them.

const DASH = "–";
const SPACE = "\u202f"; // narrow, and no line breaks there

export function percent(value) {
  return typeof value === "number" ? `${(100 * value).toFixed(1)}${SPACE}%` : DASH;
}

export function decimals(value) {
  return typeof value === "number" ? value.toFixed(3) : DASH;
}

export function big(value, unit = "") {
  if (typeof value !== "number") return DASH;
  const step = Math.min(3, Math.floor((String(Math.trunc(value)).length - 1) / 3));
  return `${(value / 1000 ** step).toFixed(step ? 1 : 0)}${SPACE}${["", "k", "M", "G"][step]}${unit}`.trim();
}

export function figure(metric) {
  const write = metric?.unit === "%" ? percent : decimals;
  return write(metric?.value);
}

export function interval(metric) {
  if (typeof metric?.low !== "number" || typeof metric?.high !== "number") return "";
  const scale = metric.unit === "%" ? (value) => (100 * value).toFixed(1) : decimals;
  return `${scale(metric.low)}–${scale(metric.high)}`;
}

export function day(created) {
  return (created ?? "").slice(0, 10) || DASH;
}
