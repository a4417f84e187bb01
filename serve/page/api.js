// The server's HTTP interface; docs/serve.md describes it.

/** Ask; an answer in JSON, or an error whose message a person reads. */
export async function ask(method, path, content) {
  const options = { method, headers: {} };
  if (content instanceof Blob) {
    options.body = content;
    options.headers["content-type"] = "application/octet-stream";
  } else if (content !== undefined) {
    options.body = JSON.stringify(content);
    options.headers["content-type"] = "application/json";
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer; is it still running?");
  }
  if (answer.status === 204) return null;
  let found = {};
  try {
    found = await answer.json();
  } catch {
    found = { error: `the server answered ${answer.status}` };
  }
  if (!answer.ok) throw new Error(found.error || `the server answered ${answer.status}`);
  return found;
}

/** The pictures of a block as JPEG blobs; null where they are not there yet. */
export async function pictures(take, block) {
  const answer = await fetch(`api/takes/${take}/frames/${block}`);
  if (!answer.ok) return null;
  const content = await answer.arrayBuffer();
  const view = new DataView(content);
  const count = view.getUint32(0, true);
  const found = [];
  let place = 4 * (count + 1);
  for (let number = 0; number < count; number += 1) {
    const length = view.getUint32(4 * (number + 1), true);
    found.push(new Blob([content.slice(place, place + length)], { type: "image/jpeg" }));
    place += length;
  }
  return found;
}

/** Where one picture of a take is. */
export function pictureOf(take, frame) {
  return `api/takes/${take}/picture/${frame}`;
}

/** Follow the news; calls `hear` with each, and `lost` when the server is gone and when it is back. */
export function follow(hear, lost) {
  const source = new EventSource("api/events");
  source.onmessage = (message) => hear(JSON.parse(message.data));
  source.onopen = () => lost(false);
  source.onerror = () => lost(true);
}
