// Byte-level BPE from a tokenizer.json, as the tokenizers library does it for this project's text encoders:
// NFC, lower case, runs of white space to one space, then GPT-2's split into words, bytes and merges.

// Unicode's White_Space, which is not what \s means here.
const SPACE = "\\t-\\r \\u0085\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const SPACES = new RegExp(`[${SPACE}]+`, "gu");
const WORDS = new RegExp(
  `'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^${SPACE}\\p{L}\\p{N}]+|[${SPACE}]+(?![^${SPACE}])|[${SPACE}]+`,
  "gu",
);

// Byte -> the printable character that stands for it in the vocabulary.
function alphabet() {
  const plain = (b) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255);
  let spare = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCodePoint(plain(b) ? b : spare++));
}

const KNOWN = { NFC: 1, Lowercase: 1, Replace: 1, Strip: 1 };

export class Tokenizer {
  // file: the parsed tokenizer.json; text: { length, begin, end } of the manifest.
  constructor(file, text) {
    const steps = file.normalizer.normalizers.map((n) => n.type);
    const odd = steps.find((name) => !(name in KNOWN)) ?? (file.model.type === "BPE" ? null : file.model.type);
    if (odd) throw new Error(`tokenizer.json: ${odd} is not supported here`);
    this.vocab = new Map(Object.entries(file.model.vocab));
    const pairs = file.model.merges.map((m) => (Array.isArray(m) ? m.join(" ") : m));
    this.ranks = new Map(pairs.map((pair, i) => [pair, i]));
    this.bytes = alphabet();
    this.text = text;
    this.special = (file.added_tokens ?? []).map((t) => [t.content, t.id]);
  }

  normalise(prompt) {
    // one character at a time: lower case must not depend on the neighbours
    const lower = Array.from(prompt.normalize("NFC"), (c) => c.toLowerCase()).join("");
    return lower.replace(SPACES, " ").replace(/^ | $/g, "");
  }

  // One word -> token numbers: join the pair with the lowest rank until there is none.
  merge(word) {
    let parts = Array.from(new TextEncoder().encode(word), (b) => this.bytes[b]);
    while (parts.length > 1) {
      let best = Infinity, at = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity;
        if (rank < best) [best, at] = [rank, i];
      }
      if (at < 0) break;
      parts = [...parts.slice(0, at), parts[at] + parts[at + 1], ...parts.slice(at + 2)];
    }
    return parts.map((p) => this.vocab.get(p));
  }

  words(part) {
    const clean = this.normalise(part);
    if (!clean) return [];
    const spaced = clean.startsWith(" ") ? clean : ` ${clean}`;
    return (spaced.match(WORDS) ?? []).flatMap((word) => this.merge(word));
  }

  // Token numbers without begin and end; special tokens that are written out count as themselves.
  encode(prompt) {
    let parts = [prompt];
    for (const [content, id] of this.special) {
      parts = parts.flatMap((p) =>
        typeof p === "number" ? [p] : p.split(content).flatMap((s, i) => (i ? [id, s] : [s])),
      );
    }
    return parts.flatMap((p) => (typeof p === "number" ? [p] : this.words(p)));
  }

  // { ids: Int32Array, mask: Float32Array, cut: number of tokens that did not fit }
  rows(prompt) {
    const { length, begin, end } = this.text;
    const found = this.encode(prompt);
    const row = [begin, ...found.slice(0, length - 2), end];
    const ids = new Int32Array(length), mask = new Float32Array(length);
    ids.set(row);
    mask.fill(1, 0, row.length);
    return { ids, mask, cut: Math.max(0, found.length - (length - 2)) };
  }
}
