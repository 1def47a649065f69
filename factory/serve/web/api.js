// The page's requests to the server. The API key, if one is needed, is kept in this module's memory and nowhere else.

let key = "";
let asking = null; // the promise of a key, which all waiting requests share

export class RequestError extends Error {}

export async function getJson(path) {
  return (await request(path, {})).json();
}

export async function postJson(path, body, signal) {
  return (await request(path, { body, signal })).json();
}

// for await (const part of chat(body, signal)): {headers} first, then {text} many times, {truncated} at a limit, {usage} last
export async function* chat(body, signal) {
  const streamed = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await request("v1/chat/completions", { body: streamed, signal });
  yield { headers: response.headers };
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new RequestError(chunk.error.message);
    const text = chunk.choices?.[0]?.delta?.content;
    if (text) yield { text };
    if (chunk.choices?.[0]?.finish_reason === "length") yield { truncated: true };
    if (chunk.usage) yield { usage: chunk.usage };
  }
  throw new RequestError("the server closed the connection before the answer was complete");
}

// header(headers, "version"): the value of x-factory-version, "" where there is none
export function header(headers, name) {
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
      throw error.name === "AbortError" ? error : new RequestError("the server cannot be reached; is `factory serve` still running?");
    });
    if (response.ok) return response;
    const message = await errorMessage(response);
    if (response.status !== 401) throw new RequestError(message);
    await askForKey(message);
  }
}

async function errorMessage(response) {
  const content = await response.json().catch(() => null);
  return content?.error?.message ?? `the server answered ${response.status} ${response.statusText}`;
}

function askForKey(reason) {
  asking ??= new Promise((resolve) => {
    const form = document.getElementById("key");
    const value = document.getElementById("key-value");
    document.getElementById("key-reason").textContent = `${reason}. Enter a key; the page keeps it in memory until it is closed.`;
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
