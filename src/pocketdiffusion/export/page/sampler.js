// Schedule, samplers and guidance; the twin of pocketdiffusion/runtime/{schedule,sample}.py.

import { normal } from "./noise.js";

const f = Math.fround;
const map = (a, rule) => Float32Array.from(a, (_, i) => rule(i));

// From 1 (noise) down to 0.
export function levels(schedule, steps) {
  if (schedule.times) {
    if (steps && steps !== schedule.times.length)
      throw new Error(`this few-step model takes ${schedule.times.length} steps, not ${steps}`);
    return Float32Array.from([...schedule.times, 0]);
  }
  const count = steps ?? schedule.steps;
  if (!(count >= 1) || count !== Math.floor(count)) throw new Error(`steps must be a whole number of 1 or more, not ${count}`);
  return Float32Array.from({ length: count + 1 }, (_, i) => {
    const t = 1 - i / count;
    return (schedule.shift * t) / (1 + (schedule.shift - 1) * t);
  });
}

// Each: (v, x, t, s, noise) -> [x at s, x0 predicted at t]; v is async.
export const STEPS = {
  async euler(v, x, t, s) {
    const w = await v(x, t);
    return [map(x, (i) => x[i] + f(s - t) * w[i]), map(x, (i) => x[i] - t * w[i])];
  },
  async heun(v, x, t, s) {
    const w = await v(x, t);
    const x0 = map(x, (i) => x[i] - t * w[i]), ahead = map(x, (i) => x[i] + f(s - t) * w[i]);
    if (s === 0) return [ahead, x0];
    const next = await v(ahead, s);
    return [map(x, (i) => x[i] + f(s - t) * ((w[i] + next[i]) / 2)), x0];
  },
  async renoise(v, x, t, s, noise) {
    const w = await v(x, t);
    const x0 = map(x, (i) => x[i] - t * w[i]);
    return [noise ? map(x, (i) => f(1 - s) * x0[i] + s * noise[i]) : x0, x0];
  },
};

// Walk one latent down the levels. velocity(x, t, guided) -> v under the condition, or [c, u] when guided.
export async function sample({ manifest, velocity, seed, image = 0, steps, guidance, onStep, stopped }) {
  const { schedule, latent } = manifest;
  const scale = guidance ?? schedule.guidance, [low, high] = schedule.interval;
  const times = levels(schedule, steps), count = latent.reduce((a, b) => a * b, 1);
  const v = async (x, t) => {
    if (scale === 1 || t < low || t > high) return velocity(x, t, false);
    const [c, u] = await velocity(x, t, true);
    return map(x, (i) => u[i] + f(scale) * (c[i] - u[i]));
  };
  let x = normal(seed, image, 0, count), x0;
  for (let i = 0; i + 1 < times.length; i++) {
    if (stopped?.()) return null;
    const fresh = schedule.sampler === "renoise" && times[i + 1] > 0;
    const noise = fresh ? normal(seed, image, i + 1, count) : null;
    [x, x0] = await STEPS[schedule.sampler](v, x, times[i], times[i + 1], noise);
    await onStep?.(i + 1, times.length - 1, x0);
  }
  return x;
}
