// An outside subscriber in JavaScript (Node 18 or later, no packages): catches up over HTTP, page by page, and goes on from
// the last position it has handled. Live delivery by AMQP needs a client of your language (`amqplib` here, `amqp091-go`, …): the
// headers `cloudEvents:*` and the body are the same event; see /docs/events for every type.
//
//   ORIGIN_URL=http://localhost:4025 OPS_CLIENT_ID=… OPS_CLIENT_SECRET=… node docs/examples/subscriber.mjs 'ledger.transfer.*'
//
// What matters in any language:
// - Handle an event and save its position together. After a crash you get the last ones again: `id` tells what you had.
// - Within one `stream` events come in order of `version`; across streams the order is that of `position`.
// - From the broker: acknowledge after handling; a gap between positions is normal (other types, private events). After
//   your queue has overflowed, or at the first start, catch up here from the last position, then go on live.
import { readFileSync, writeFileSync, renameSync } from "node:fs";

const { ORIGIN_URL: origin, OPS_CLIENT_ID: id, OPS_CLIENT_SECRET: secret, ACCESS_TOKEN, STATE = "subscriber.state" } = process.env;
const types = process.argv[2] ?? "#";

async function accessToken() {
  if (ACCESS_TOKEN) return ACCESS_TOKEN;
  const response = await fetch(`${origin}/oauth/token`, {
    method: "POST",
    headers: {
      authorization: "Basic " + Buffer.from(`${encodeURIComponent(id)}:${encodeURIComponent(secret)}`).toString("base64"),
      "content-type": "application/x-www-form-urlencoded",
    },
    body: new URLSearchParams({ grant_type: "client_credentials", scope: "sync:admin" }),
  });
  if (!response.ok) throw new Error(`no token: ${response.status} ${await response.text()}`);
  return (await response.json()).access_token;
}

function lastPosition() {
  try {
    return Number(readFileSync(STATE, "utf8"));
  } catch {
    return 0;
  }
}

function handle(event) {
  console.log(JSON.stringify({ position: event.position, id: event.id, type: event.type, subject: event.subject, data: event.data }));
}

let token = await accessToken();
let position = lastPosition();
let cursor = null;
for (;;) {
  const query = new URLSearchParams({ types, limit: "200", ...(cursor ? { cursor } : { after: String(position) }) });
  const response = await fetch(`${origin}/api/sync/events?${query}`, { headers: { authorization: `Bearer ${token}` } });
  if (response.status === 401) {
    token = await accessToken();
    continue;
  }
  if (response.status === 429 || response.status === 503) {
    await new Promise((resolve) => setTimeout(resolve, 1000 * Number(response.headers.get("retry-after") ?? 1)));
    continue;
  }
  if (!response.ok) throw new Error(`${response.status} ${await response.text()}`);
  const page = await response.json();
  for (const event of page.items) {
    handle(event);
    position = event.position;
  }
  writeFileSync(`${STATE}.new`, String(position)); // whole or not at all
  renameSync(`${STATE}.new`, STATE);
  cursor = page.next_cursor;
  if (cursor === null) break; // caught up; run again, or go on live
}
