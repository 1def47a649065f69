// Numbers as the factory's tables write them; a dash for what was not measured.

const DASH = "–";
const SPACE = "\u202f"; // narrow, without a line break

export function percent(value) {
  return typeof value === "number" ? `${(100 * value).toFixed(1)}${SPACE}%` : DASH;
}

export function decimals(value) {
  return typeof value === "number" ? value.toFixed(3) : DASH;
}

// quantity(80_000_000) → "80.0 M", quantity(165_000_000, "B") → "165.0 MB"
export function quantity(value, unit = "") {
  if (typeof value !== "number") return DASH;
  const step = Math.min(3, Math.floor((String(Math.trunc(value)).length - 1) / 3));
  return `${(value / 1000 ** step).toFixed(step ? 1 : 0)}${SPACE}${["", "k", "M", "G"][step]}${unit}`.trim();
}

// metricValue({value: 0.412}) → "0.412", metricValue({value: 0.76, unit: "%"}) → "76.0 %"
export function metricValue(metric) {
  const format = metric?.unit === "%" ? percent : decimals;
  return format(metric?.value);
}

// interval({low: 0.38, high: 0.44}) → "0.380–0.440"
export function interval(metric) {
  if (typeof metric?.low !== "number" || typeof metric?.high !== "number") return "";
  const format = metric.unit === "%" ? (value) => (100 * value).toFixed(1) : decimals;
  return `${format(metric.low)}–${format(metric.high)}`;
}

// passedOf({value: 0.7, n: 20}) → "14 of 20"
export function passedOf(metric) {
  return metric ? `${passed(metric)} of ${metric.n}` : DASH;
}

// passed({value: 0.7, n: 20}) → 14
export function passed(metric) {
  return Math.round(metric.value * metric.n);
}

export function day(created) {
  return created.slice(0, 10);
}
