// node parity.mjs PAGE REFERENCE: what the page's modules make of prompts, seeds and schedules, as JSON.
import { readFileSync } from "node:fs";

const [page, path] = process.argv.slice(2);
const { Tokenizer } = await import(`${page}/tokenizer.js`);
const { normal, philox4x32 } = await import(`${page}/noise.js`);
const { levels, STEPS } = await import(`${page}/sampler.js`);

const given = JSON.parse(readFileSync(path));
const tokenizer = new Tokenizer(given.tokenizer, given.text);
const v = async (x, t) => x.map((a) => Math.sin(a) * t + 0.3);
const steps = {};
for (const [name, step] of Object.entries(STEPS)) {
  steps[name] = [];
  for (const { x, t, s, noise } of given.steps)
    steps[name].push((await step(v, Float32Array.from(x), t, s, noise && Float32Array.from(noise))).map((a) => [...a]));
}
console.log(
  JSON.stringify({
    rows: given.prompts.map((p) => ((r) => ({ ids: [...r.ids], mask: [...r.mask], cut: r.cut }))(tokenizer.rows(p))),
    noise: given.noise.map((n) => [...normal(n.seed, n.image, n.step, n.count)]),
    philox: given.philox.map(([counter, key]) => philox4x32(counter, key)),
    levels: given.levels.map((s) => [...levels(s, s.wanted ?? undefined)]),
    steps,
  }),
);
