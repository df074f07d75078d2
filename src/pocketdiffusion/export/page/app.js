// The page: a form, a canvas and a line of facts around the engine in its worker.

const $ = (id) => document.getElementById(id);
const EXAMPLES = ["a red circle", "three black rings", "a pink heart above a brown ring", "a striped blue square"];
const BASE = new URL("./", location.href).href;

const worker = new Worker("worker.js", { type: "module" });
const waiting = new Map();
let count = 0, listen = {};

worker.onmessage = ({ data }) => {
  if (data.loading) return listen.loading?.(data.loading);
  if (data.progress) return listen.progress?.(data.progress);
  const { good, bad } = waiting.get(data.id);
  waiting.delete(data.id);
  if (data.error) bad(new Error(data.error));
  else good(data.result);
};
worker.onerror = (event) => tell(event.message || "the worker could not be started", true);

function ask(message) {
  return new Promise((good, bad) => {
    waiting.set(++count, { good, bad });
    worker.postMessage({ ...message, id: count });
  });
}

function tell(text, error = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", error);
}

function advance(share) {
  $("fill").style.width = `${100 * share}%`;
  document.querySelector(".bar").setAttribute("aria-valuenow", Math.round(100 * share));
}

function paint(rgba) {
  const canvas = $("canvas");
  canvas.getContext("2d").putImageData(new ImageData(rgba, canvas.width, canvas.height), 0, 0);
  $("veil").hidden = true;
}

const seconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

// What the page and its workers hold, where the browser tells.
async function memory() {
  if (!globalThis.crossOriginIsolated || !performance.measureUserAgentSpecificMemory) return null;
  const late = new Promise((done) => setTimeout(() => done(null), 4000));
  return Promise.race([performance.measureUserAgentSpecificMemory().then((m) => m.bytes, () => null), late]);
}

let busy = false, about;

async function draw() {
  if (busy) {
    worker.postMessage({ stop: true });
    return;
  }
  busy = true;
  $("go").textContent = "Stop";
  $("save").setAttribute("aria-disabled", "true");
  const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  const settings = { prompt: $("prompt").value, seed: number("seed") ?? 0, steps: number("steps"), guidance: number("guidance") };
  settings.preview = 4;
  listen.progress = ({ step, steps, rgba }) => {
    advance(step / steps);
    tell(`step ${step} of ${steps}`);
    if (rgba) paint(rgba);
  };
  try {
    if (!(Number.isSafeInteger(settings.seed) && settings.seed >= 0)) throw new Error("the seed must be a whole number, 0 or more");
    const found = await ask({ type: "generate", settings });
    if (!found) tell("stopped");
    else {
      paint(found.rgba);
      const { text, steps, decoder } = found.times, all = text + steps + decoder;
      const each = steps / (settings.steps ?? about.manifest.schedule.steps);
      const cut = found.cut ? ` The prompt was cut: ${found.cut} tokens did not fit.` : "";
      const timing = `${seconds(all)}: text ${seconds(text)}, ${seconds(each)} per step, decoder ${seconds(decoder)}.`;
      tell(timing + cut);
      $("canvas").setAttribute("aria-label", settings.prompt);
      $("canvas").toBlob((blob) => {
        URL.revokeObjectURL($("save").href);
        $("save").href = URL.createObjectURL(blob);
        $("save").download = `${settings.prompt.replace(/[^a-z0-9]+/gi, "-").slice(0, 48) || "picture"}-${settings.seed}.png`;
        $("save").setAttribute("aria-disabled", "false");
      });
      document.body.dataset.done = JSON.stringify({ ...settings, times: found.times });
      memory().then((bytes) => bytes && tell(`${timing} ${megabytes(bytes)} in use.${cut}`));
    }
  } catch (error) {
    tell(error.message, true);
  }
  advance(0);
  $("go").textContent = "Draw";
  busy = false;
}

// Threads need two headers; where the host does not send them the service worker does, from the second load on.
async function isolate() {
  if (!("serviceWorker" in navigator)) return;
  const had = navigator.serviceWorker.controller;
  await navigator.serviceWorker.register("sw.js");
  await navigator.serviceWorker.ready;
  if (!globalThis.crossOriginIsolated && !had && !sessionStorage.getItem("reloaded")) {
    sessionStorage.setItem("reloaded", "yes");
    location.reload();
    await new Promise(() => {});
  }
}

async function start() {
  for (const text of EXAMPLES) {
    const chip = Object.assign(document.createElement("button"), { type: "button", textContent: text });
    chip.onclick = () => ($("prompt").value = text);
    $("chips").append(chip);
  }
  await isolate().catch((error) => console.warn("no service worker:", error.message));
  listen.loading = ({ loaded, total }) => {
    advance(loaded / total);
    tell(`loading ${megabytes(loaded)} of ${megabytes(total)}`);
  };
  const asked = new URLSearchParams(location.search), started = performance.now();
  const options = {};
  if (asked.has("use")) options.use = asked.get("use");
  if (asked.has("threads")) options.threads = Number(asked.get("threads"));
  about = await ask({ type: "open", base: BASE, options });
  const { schedule, picture } = about.manifest;
  [$("canvas").height, $("canvas").width] = picture;
  if (Math.min(...picture) > 128) $("canvas").style.imageRendering = "auto";
  $("steps").value = schedule.times ? schedule.times.length : schedule.steps;
  $("steps").disabled = Boolean(schedule.times);
  $("guidance").value = schedule.guidance;
  const how = about.provider === "webgpu" ? "WebGPU" : `WASM, ${about.threads} thread${about.threads > 1 ? "s" : ""}`;
  const alone = about.provider === "wasm" && !globalThis.crossOriginIsolated ? " (this page is not cross-origin isolated, so one thread only)" : "";
  $("facts").textContent = `${about.manifest.model}, ${about.manifest.precision}, ${megabytes(about.bytes)} of weights, ${picture.join(" x ")} pixels. ${how}${alone}.`;
  $("veiltext").textContent = "ready";
  advance(0);
  tell(`ready after ${seconds(performance.now() - started)}`);
  for (const id of ["go", "dice"]) $(id).disabled = false;
  document.body.dataset.ready = JSON.stringify({ provider: about.provider, threads: about.threads });
}

$("form").onsubmit = (event) => {
  event.preventDefault();
  draw();
};
$("dice").onclick = () => {
  $("seed").value = Math.floor(Math.random() * 2 ** 31);
  if (!busy) draw();
};

start().catch((error) => {
  $("veiltext").textContent = "could not be loaded";
  tell(error.message, true);
});
