// Calls to the server that this page came from, by paths relative to it: a proxy may add a prefix.

let apiKey = "";

/** Send this key with every call from now on. It is kept here alone, and gone with the page. */
export function useKey(key) {
  apiKey = key;
}

export class ApiError extends Error {
  constructor(status, message, param) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

/** Call a path; throws ApiError with the server's own words for anything but 2xx. */
export async function call(path, { body, signal } = {}) {
  const headers = apiKey ? { authorization: `Bearer ${apiKey}` } : {};
  if (body !== undefined) headers["content-type"] = "application/json";
  const response = await fetch(path, {
    method: body === undefined ? "GET" : "POST",
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
    signal,
    credentials: "omit",
  });
  if (!response.ok) {
    const { error } = await response.json().catch(() => ({}));
    const message = error?.message ?? `the server answered ${response.status}`;
    throw new ApiError(response.status, message, error?.param);
  }
  return response;
}
