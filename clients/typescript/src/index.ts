/**
 * A typed client of the Sangam API: paths, parameters, bodies and answers are those of its OpenAPI document.
 *
 *     const sangam = await logIn("http://localhost:4025", { email, password, platform: "bfc" });
 *     const { items } = await answer(sangam.GET("/api/accounts"));
 */
import createClient, { type Client, type Middleware } from "openapi-fetch";

import type { components, paths } from "./schema.js";

export type Schemas = components["schemas"];
export type Sangam = Client<paths>;

/** A refusal or an outage, as RFC 9457 writes it. `code` is stable. */
export class ProblemError extends Error {
  constructor(readonly problem: Schemas["Problem"]) {
    super(`${problem.status} ${problem.code}: ${problem.detail}`);
  }
}

/**
 * The body of an answer.
 *
 * @throws ProblemError for any other answer than success
 */
export async function answer<T>(call: Promise<{ data?: T; error?: unknown; response: Response }>): Promise<T> {
  const { data, error, response } = await call;
  if (!response.ok) throw new ProblemError(error as Schemas["Problem"]);
  return data as T;
}

/** A client without a session: for registration, login and what else is public. */
export function connect(origin: string): Sangam {
  return createClient<paths>({ baseUrl: origin });
}

/**
 * Logs in; the client renews its token before it ends, and sees what it has written: each command's
 * `X-Consistency-Token` goes with the reads that follow.
 *
 * @throws ProblemError `invalid_credentials`, `otp_required`, …
 */
export async function logIn(origin: string, credentials: Schemas["LoginBody"]): Promise<Sangam> {
  let session = await answer(connect(origin).POST("/api/auth/login", { body: credentials }));
  let renewAt = dueAt(session);
  let renewing: Promise<void> | undefined;
  let written: string | null = null;

  const renew = async (): Promise<void> => {
    const { refresh_token } = session;
    session = await answer(connect(origin).POST("/api/auth/refresh", { body: { refresh_token } }));
    renewAt = dueAt(session);
  };
  const middleware: Middleware = {
    async onRequest({ request }) {
      if (Date.now() >= renewAt) await (renewing ??= renew().finally(() => (renewing = undefined)));
      request.headers.set("Authorization", `Bearer ${session.access_token}`);
      if (written !== null && request.method === "GET") request.headers.set("X-Consistency-Token", written);
      return request;
    },
    onResponse({ response }) {
      written = response.headers.get("X-Consistency-Token") ?? written;
    },
  };
  const client = connect(origin);
  client.use(middleware);
  return client;
}

/** Half a minute before the end, in milliseconds of `Date.now()`. */
function dueAt(session: Schemas["TokenAnswer"]): number {
  return Date.now() + ((session.expires_in ?? 300) - 30) * 1000;
}
