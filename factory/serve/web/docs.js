// Shows openapi.json: each operation with the fields of its request, and what its answers mean.

import { getJson } from "./api.js";
import { element, sayError } from "./element.js";

async function show() {
  try {
    const description = await getJson("openapi.json");
    const schemas = description.components?.schemas ?? {};
    const operations = Object.entries(description.paths).flatMap(([path, methods]) =>
      Object.entries(methods).map(([method, operation]) => section(method, path, operation, schemas)),
    );
    document.getElementById("operations").replaceChildren(...operations);
  } catch (error) {
    sayError(document.querySelector("main .error"), error.message);
  }
}

function section(method, path, operation, schemas) {
  const body = operation.requestBody?.content?.["application/json"]?.schema;
  const parameters = (operation.parameters ?? []).map((one) => row(one.name, one.schema, one.required, one.description, schemas));
  return element(
    "section",
    { class: "operation" },
    element("h2", {}, element("code", {}, `${method.toUpperCase()} ${path}`)),
    element("p", {}, operation.summary ?? ""),
    table(["field", "type", ""], [...parameters, ...(body ? fields(resolved(body, schemas), schemas) : [])]),
    element(
      "details",
      {},
      element("summary", {}, "Answers"),
      table(["status", ""], Object.entries(operation.responses ?? {}).map(([status, one]) => [status, one.description])),
    ),
  );
}

function fields(schema, schemas) {
  const required = schema.required ?? [];
  return Object.entries(schema.properties ?? {}).map(([name, one]) =>
    row(name, one, required.includes(name), one.description, schemas),
  );
}

function row(name, schema, required, description, schemas) {
  const bounds = [
    ["minimum", "≥"], ["exclusiveMinimum", ">"], ["maximum", "≤"], ["exclusiveMaximum", "<"], ["maxLength", "characters ≤"],
  ];
  const kinds = [schema, ...(schema.anyOf ?? [])];
  const limits = bounds.flatMap(([key, sign]) => kinds.filter((one) => key in one).map((one) => `${sign} ${one[key]}`));
  return [
    element("code", {}, name),
    typeName(schema, schemas),
    [required ? "required" : "", description ?? "", ...limits].filter(Boolean).join(", "),
  ];
}

function typeName(schema, schemas) {
  if (schema.anyOf || schema.oneOf) {
    const names = (schema.anyOf ?? schema.oneOf).map((one) => typeName(one, schemas)).filter((name) => name !== "null");
    return [...new Set(names)].join(" or ");
  }
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(", ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.type === "array") return `list of ${typeName(schema.items ?? {}, schemas)}`;
  if (schema.$ref) return typeName({ type: "object", ...resolved(schema, schemas) }, schemas);
  if (schema.type === "object" && schema.properties) return `{${Object.keys(schema.properties).join(", ")}}`;
  return schema.type ?? "any";
}

function resolved(schema, schemas) {
  return schema.$ref ? schemas[schema.$ref.split("/").pop()] ?? {} : schema;
}

function table(head, rows) {
  if (!rows.length) return null;
  const cells = (tag, row) => element("tr", {}, row.map((cell) => element(tag, {}, cell)));
  return element(
    "div",
    { class: "scroll" },
    element("table", {}, element("thead", {}, cells("th", head)), element("tbody", {}, rows.map((row) => cells("td", row)))),
  );
}

show();
