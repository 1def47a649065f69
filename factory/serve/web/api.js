// What the page asks of the server. A key, where one is asked for, lives in this module's memory and nowhere else.

let key = "";
let asking = null; // the promise of a key, shared by all requests that wait for it

export class Refused extends Error {}

export async function getJson(path) {
  return (await request(path, {})).json();
}

export async function postJson(path, body, signal) {
  return (await request(path, { body, signal })).json();
}

// for await (const part of chat(body, signal)): first {headers}, then {text}, {cut} at a limit, at the end {usage}
export async function* chat(body, signal) {
  const streamed = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await request("v1/chat/completions", { body: streamed, signal });
  yield { headers: response.headers };
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refused(chunk.error.message);
    const text = chunk.choices?.[0]?.delta?.content;
    if (text) yield { text };
    if (chunk.choices?.[0]?.finish_reason === "length") yield { cut: true };
    if (chunk.usage) yield { usage: chunk.usage };
  }
  throw new Refused("the server ended the answer before it was complete");
}

// fact(headers, "version"): what the server says of an answer beside it, "" where it says nothing
export function fact(headers, name) {
  return decodeURIComponent(headers.get(`x-factory-${name}`) ?? "");
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    waiting += value.replaceAll("\r", "");
    const whole = waiting.split("\n\n");
    waiting = whole.pop();
    for (const event of whole) {
      const lines = event.split("\n").filter((line) => line.startsWith("data:"));
      if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
    }
  }
}

async function request(path, { body, signal }) {
  for (;;) {
    const headers = key ? { authorization: `Bearer ${key}` } : {};
    const options = body ? { method: "POST", body: JSON.stringify(body), signal } : { signal };
    if (body) headers["content-type"] = "application/json";
    const response = await fetch(path, { ...options, headers }).catch((error) => {
      throw error.name === "AbortError" ? error : new Refused("the server cannot be reached: is factory serve still running?");
    });
    if (response.ok) return response;
    const message = await refusal(response);
    if (response.status !== 401) throw new Refused(message);
    await newKey(message);
  }
}

async function refusal(response) {
  const content = await response.json().catch(() => null);
  return content?.error?.message ?? `the server answered ${response.status} ${response.statusText}`;
}

function newKey(why) {
  asking ??= new Promise((resolve) => {
    const form = document.getElementById("key");
    const value = document.getElementById("key-value");
    document.getElementById("key-why").textContent = `${why}. It is kept until this page is closed, and nowhere written down.`;
    form.hidden = false;
    value.focus();
    form.onsubmit = (event) => {
      event.preventDefault();
      key = value.value.trim();
      value.value = "";
      form.hidden = true;
      asking = null;
      resolve();
    };
  });
  return asking;
}
