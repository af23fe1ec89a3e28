// Renders /openapi.json: no library, nothing from elsewhere.

const description = await (await fetch("/openapi.json")).json();

function element(name, text, ...children) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

const resolve = (schema) => (schema.$ref ? description.components.schemas[schema.$ref.split("/").pop()] : schema);

// A schema as a small example of types, such as `{"id": uuid, "tags": [string]}`.
function sketch(schema, depth = 0) {
  const known = resolve(schema ?? {});
  if (known.enum) return known.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (known.const !== undefined) return JSON.stringify(known.const);
  if (known.anyOf) return known.anyOf.map((option) => sketch(option, depth)).join(" | ");
  if (known.type === "array") return `[${sketch(known.items, depth)}]`;
  if (known.properties) {
    const indent = "  ".repeat(depth + 1);
    const lines = Object.entries(known.properties).map(([name, value]) => `${indent}"${name}": ${sketch(value, depth + 1)}`);
    return `{\n${lines.join(",\n")}\n${"  ".repeat(depth)}}`;
  }
  if (known.additionalProperties) return `{string: ${sketch(known.additionalProperties, depth)}}`;
  return known.format ?? known.type ?? "any";
}

function section(title, content) {
  return element("details", "", element("summary", title), ...Object.entries(content).flatMap(([type, { schema }]) => [
    element("code", type),
    element("pre", schema ? sketch(schema) : ""),
  ]));
}

function list(entries) {
  return element("dl", "", ...entries.flatMap(([name, text]) => [element("dt", name), element("dd", text)]));
}

for (const [path, operations] of Object.entries(description.paths)) {
  for (const [method, operation] of Object.entries(operations)) {
    const title = element("h2", "", element("code", method.toUpperCase()), element("code", path));
    title.firstChild.className = "method";
    const call = element("li", "", title, element("p", operation.description));
    const parameters = operation.parameters ?? [];
    if (parameters.length) {
      call.append(list(parameters.map((one) => [one.name, [one.in, sketch(one.schema), one.description].filter(Boolean).join(" · ")])));
    }
    if (operation.requestBody) call.append(section("Request", operation.requestBody.content));
    const succeeds = Object.entries(operation.responses).find(([status]) => status < 300);
    if (succeeds?.[1].content) call.append(section(`Answer ${succeeds[0]}`, succeeds[1].content));
    call.append(list(Object.entries(operation.responses).map(([status, response]) => [status, response.description])));
    document.getElementById("calls").append(call);
  }
}
