// Service worker: everything once from the network, then from the cache, so the page works offline; and the two
// headers that give WASM its threads, for hosts that do not send them.

// several bundles may live on one host: each has a place, and its versions follow each other there
const PLACE = ` at ${self.registration.scope}`;
const VERSION = `pocket-@VERSION@${PLACE}`;
const FILES = ["@FILES@"];

self.addEventListener("install", (event) => {
  event.waitUntil(
    (async () => {
      const cache = await caches.open(VERSION);
      // small files now; weights and runtimes are kept as the page asks for them
      await cache.addAll(FILES);
      await self.skipWaiting();
    })(),
  );
});

self.addEventListener("activate", (event) => {
  event.waitUntil(
    (async () => {
      const mine = (key) => key.startsWith("pocket-") && key.endsWith(PLACE);
      for (const key of await caches.keys()) if (mine(key) && key !== VERSION) await caches.delete(key);
      await self.clients.claim();
    })(),
  );
});

function isolated(answer) {
  if (answer.status === 0) return answer;
  const headers = new Headers(answer.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  return new Response(answer.body, { status: answer.status, statusText: answer.statusText, headers });
}

self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method !== "GET" || !request.url.startsWith(self.registration.scope)) return;
  event.respondWith(
    (async () => {
      const cache = await caches.open(VERSION);
      const kept = await cache.match(request, { ignoreSearch: true });
      if (kept) return isolated(kept);
      const answer = await fetch(request);
      if (answer.ok) await cache.put(request, answer.clone());
      return isolated(answer);
    })(),
  );
});
