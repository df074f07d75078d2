// Engine: a web bundle, checked and run by onnxruntime-web. Knows no page; works in a worker and on one.

import { sample } from "./sampler.js";
import { Tokenizer } from "./tokenizer.js";

const FORMAT = 1;
const COMPONENTS = ["text_encoder", "denoiser", "decoder"];
const RUNTIMES = { wasm: "ort.wasm.min.mjs", webgpu: "ort.webgpu.min.mjs" };

// "webgpu" when there is a real adapter: software ones (SwiftShader) are a hundred times slower than WASM.
export async function provider(manifest) {
  if (!manifest.runtimes.includes("webgpu") || !globalThis.navigator?.gpu) return "wasm";
  const adapter = await navigator.gpu.requestAdapter().catch(() => null);
  const info = adapter?.info ?? {};
  const soft = adapter?.isFallbackAdapter || info.isFallbackAdapter || /swiftshader|llvmpipe|software/i.test(`${info.architecture} ${info.description}`);
  return adapter && !soft ? "webgpu" : "wasm";
}

async function get(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url.pathname ?? url}: ${answer.status} ${answer.statusText}`);
  return answer;
}

async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (b) => b.toString(16).padStart(2, "0")).join("");
}

// A file of the bundle, by name, compared with the manifest where the browser has the means (HTTPS, localhost).
async function file(base, manifest, name, seen) {
  const answer = await get(new URL(name, base));
  const parts = [];
  let size = 0;
  const reader = answer.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    size += part.value.length;
    seen?.(part.value.length);
  }
  const bytes = new Uint8Array(size);
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  if (globalThis.crypto?.subtle && (await sha256(bytes)) !== manifest.files[name])
    throw new Error(`${name} does not match the manifest (truncated, swapped or edited)`);
  return bytes;
}

export async function readManifest(base) {
  const manifest = await (await get(new URL("manifest.json", base))).json();
  if (manifest.format !== FORMAT) throw new Error(`bundle format ${manifest.format}, expected ${FORMAT}; export it again`);
  if (manifest.target !== "web") throw new Error(`a bundle for ${manifest.target}, not for the web`);
  const missing = COMPONENTS.find((c) => !(c in manifest.components));
  if (missing) throw new Error(`the bundle has no ${missing}`);
  return manifest;
}

export class Engine {
  // seen(bytes so far, bytes in all) is called as weights arrive.
  static async open(base, { threads, use, seen } = {}) {
    const engine = new Engine();
    const manifest = (engine.manifest = await readManifest(base));
    engine.provider = use ?? (await provider(manifest));
    engine.threads = globalThis.crossOriginIsolated ? (threads ?? Math.min(4, navigator.hardwareConcurrency || 1)) : 1;
    const ort = (engine.ort = await import(new URL(`ort/${RUNTIMES[engine.provider]}`, base).href));
    ort.env.wasm.wasmPaths = new URL("ort/", base).href;
    ort.env.wasm.numThreads = engine.threads;
    ort.env.logLevel = "error";
    const json = await file(base, manifest, manifest.text.tokenizer);
    engine.tokenizer = new Tokenizer(JSON.parse(new TextDecoder().decode(json)), manifest.text);
    engine.bytes = COMPONENTS.reduce((sum, c) => sum + manifest.components[c].bytes, 0);
    engine.sessions = {};
    let loaded = 0;
    for (const name of COMPONENTS) {
      const { shards, bytes } = manifest.components[name];
      const model = new Uint8Array(bytes);
      let at = 0;
      for (const shard of shards) {
        const part = await file(base, manifest, shard, (n) => seen?.((loaded += n), engine.bytes));
        model.set(part, at);
        at += part.length;
      }
      engine.sessions[name] = await ort.InferenceSession.create(model, { executionProviders: [engine.provider] });
    }
    return engine;
  }

  // One component on named arrays -> its outputs by name, as arrays.
  async call(name, inputs) {
    const { ort } = this, feeds = {};
    const wanted = this.manifest.components[name].inputs;
    for (const key of this.sessions[name].inputNames)
      feeds[key] = new ort.Tensor(wanted[key].dtype, inputs[key], wanted[key].shape);
    const found = await this.sessions[name].run(feeds);
    return Object.fromEntries(Object.entries(found).map(([key, tensor]) => [key, tensor.data]));
  }

  async encode(prompt) {
    const { ids, mask, cut } = this.tokenizer.rows(prompt);
    return { cond: { ...(await this.call("text_encoder", { ids, mask })), mask }, cut };
  }

  // Velocities under the conditions in one call of the exported batch, padded with the last.
  async velocities(x, t, conds) {
    const batch = this.manifest.components.denoiser.inputs.x.shape[0], found = [];
    for (let i = 0; i < conds.length; i += batch) {
      const part = conds.slice(i, i + batch);
      while (part.length < batch) part.push(part.at(-1));
      const inputs = { t: new Float32Array(batch).fill(t), x: new Float32Array(batch * x.length) };
      for (let j = 0; j < batch; j++) inputs.x.set(x, j * x.length);
      for (const key of Object.keys(part[0])) {
        const size = part[0][key].length;
        inputs[key] = new Float32Array(batch * size);
        part.forEach((cond, j) => inputs[key].set(cond[key], j * size));
      }
      const { v } = await this.call("denoiser", inputs);
      for (let j = 0; j < batch; j++) found.push(v.slice(j * x.length, (j + 1) * x.length));
    }
    return found.slice(0, conds.length);
  }

  // A latent -> RGBA bytes.
  async decode(z) {
    const { picture } = await this.call("decoder", { z });
    const [height, width] = this.manifest.picture, plane = height * width;
    const rgba = new Uint8ClampedArray(4 * plane).fill(255);
    for (let c = 0; c < 3; c++)
      for (let i = 0; i < plane; i++) rgba[4 * i + c] = (picture[c * plane + i] + 1) * 127.5;
    return rgba;
  }

  // { rgba, cut, times: ms of text, steps and decoding }; null when stopped() said so. onStep(step, steps, rgba or
  // null) gets a preview of the predicted picture every `preview` steps.
  async generate({ prompt, negative = "", seed = 0, image = 0, steps, guidance, preview = 0, onStep, stopped }) {
    const clock = () => performance.now(), started = clock();
    const { cond, cut } = await this.encode(prompt);
    const none = (await this.encode(negative)).cond;
    const encoded = clock();
    const velocity = async (x, t, guided) => {
      const found = await this.velocities(x, t, guided ? [cond, none] : [cond]);
      return guided ? found : found[0];
    };
    let looking = 0;
    const step = async (i, of, x0) => {
      const look = preview && i % preview === 0 && i < of;
      const before = clock();
      await onStep?.(i, of, look ? await this.decode(x0) : null);
      looking += clock() - before;
    };
    const z = await sample({ manifest: this.manifest, velocity, seed, image, steps, guidance, onStep: step, stopped });
    if (!z) return null;
    const denoised = clock();
    const rgba = await this.decode(z);
    const times = { text: encoded - started, steps: denoised - encoded - looking, decoder: clock() - denoised };
    return { rgba, cut, times };
  }
}
