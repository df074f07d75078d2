// The engine in a thread of its own, so that the page stays alive. Messages: open, generate, stop.

import { Engine } from "./engine.js";

let engine, stop = false;

const rules = {
  async open({ base, options }) {
    engine = await Engine.open(base, { ...options, seen: (loaded, total) => postMessage({ loading: { loaded, total } }) });
    const { manifest, provider, threads, bytes } = engine;
    return { manifest, provider, threads, bytes };
  },
  async generate({ settings }) {
    stop = false;
    const onStep = async (step, steps, rgba) => {
      postMessage({ progress: { step, steps, rgba } });
      await new Promise((done) => setTimeout(done)); // lets a stop in
    };
    return engine.generate({ ...settings, onStep, stopped: () => stop });
  },
};

onmessage = async ({ data }) => {
  if (data.stop) {
    stop = true;
    return;
  }
  try {
    postMessage({ id: data.id, result: await rules[data.type](data) });
  } catch (error) {
    postMessage({ id: data.id, error: error.message ?? String(error) });
  }
};
