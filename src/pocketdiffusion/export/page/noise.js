// Sampling noise: Philox4x32-10 and Box-Muller, the same numbers as pocketdiffusion/noise.py, which explains them.

const ROUNDS = 10;

// The high and the low word of the product of two 32-bit words.
function multiply(a, b) {
  const al = a & 0xffff, ah = a >>> 16, bl = b & 0xffff, bh = b >>> 16;
  const low = al * bl;
  const middle = ah * bl + (low >>> 16); // below 2^32
  const cross = al * bh + (middle & 0xffff);
  const high = ah * bh + Math.floor(middle / 65536) + Math.floor(cross / 65536);
  return [high >>> 0, Math.imul(a, b) >>> 0];
}

// Four random words for a counter of four words under a key of two.
export function philox4x32(counter, key) {
  let [c0, c1, c2, c3] = counter;
  let [k0, k1] = key;
  for (let i = 0; i < ROUNDS; i++) {
    const [h0, l0] = multiply(0xd2511f53, c0);
    const [h1, l1] = multiply(0xcd9e8d57, c2);
    [c0, c1, c2, c3] = [(h1 ^ c1 ^ k0) >>> 0, l1, (h0 ^ c3 ^ k1) >>> 0, l0];
    k0 = (k0 + 0x9e3779b9) >>> 0;
    k1 = (k1 + 0xbb67ae85) >>> 0;
  }
  return [c0, c1, c2, c3];
}

// count standard normals for one picture of a seed (an integer below 2^64, a number or a BigInt). step is 0 for
// the noise that sampling starts from, k for the fresh noise of the k-th later level.
export function normal(seed, image, step, count) {
  const wide = BigInt(seed);
  if (wide < 0n || wide >= 1n << 64n) throw new RangeError(`seed must be at least 0 and below 2^64, not ${seed}`);
  const key = [Number(wide & 0xffffffffn), Number(wide >> 32n)];
  const z = new Float32Array(count);
  for (let i = 0; i < count; i += 4) {
    const words = philox4x32([i / 4, step, image, 0], key);
    for (let j = 0; j < 4 && i + j < count; j += 2) {
      const radius = Math.sqrt(-2 * Math.log((words[j] + 0.5) / 4294967296));
      const angle = (2 * Math.PI * (words[j + 1] + 0.5)) / 4294967296;
      z[i + j] = radius * Math.cos(angle);
      if (i + j + 1 < count) z[i + j + 1] = radius * Math.sin(angle);
    }
  }
  return z;
}
