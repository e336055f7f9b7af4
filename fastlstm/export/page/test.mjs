// The golden samples of the engine in Python, replayed: `node NAME_test.mjs`, or test() in a page.

import { load, modules, MODEL } from "./NAME.js";

const SAMPLES = null;

/** Replay the samples in a module beside this file; returns { ok, words }. */
export async function test(target = Object.keys(modules())[0]) {
  const model = await load(modules()[target]);
  const inputs = MODEL.inputs.map((port) => samples(port));
  const wanted = MODEL.outputs.map((port) => samples(port));
  const result = { different: {}, largest: 0, model };
  if (MODEL.streams) replayStream(result, model, inputs, wanted);
  else compare(result, "call", list(model.call(...inputs)), wanted);
  const counts = Object.entries(result.different);
  const same = counts.every(([, count]) => count === 0);
  const ok = model.hash === MODEL.hash && (model.sameBits ? same : result.largest <= MODEL.tolerance);
  const promise = model.sameBits ? "same bits" : "within tolerance";
  const values = wanted.reduce((sum, array) => sum + array.length, 0);
  const words = `${MODEL.name}: ${values} values; ${counts.map(([what, count]) => `${what} ${count}`).join(", ")} `
    + `different; largest difference ${result.largest.toExponential(1)}; ${promise}: ${ok ? "ok" : "FAILED"}`;
  return { ok, words };
}

/** The inputs of the samples, one array an input, for a page to show. */
export function sampleInputs() {
  return MODEL.inputs.map((port) => samples(port));
}

function replayStream(result, model, inputs, wanted) {
  const moving = MODEL.inputs.findIndex((port) => port.moves);
  const steps = inputs[moving].length / MODEL.inputs[moving].elements;
  const part = (from, to) => inputs.map((array, index) => {
    const { moves, elements } = MODEL.inputs[index];
    return moves ? array.subarray(from * elements, to * elements) : array;
  });
  const tail = (stream) => list(stream.finish());
  const half = steps >> 1;

  const stream = model.stream();
  const stepped = [];
  let restored;
  for (let step = 0; step < steps; step++) {
    if (step === half) restored = stream.state;
    stepped.push(list(stream.step(...part(step, step + 1))));
  }
  compare(result, "step", joined([...stepped, tail(stream)]), wanted);

  const whole = model.stream();
  compare(result, "run", joined([list(whole.run(...part(0, steps))), tail(whole)]), wanted);

  const other = model.stream();
  other.state = restored;
  const rest = list(other.run(...part(half, steps)));
  compare(result, "restored", joined([...stepped.slice(0, half), rest, tail(other)]), wanted);
  [stream, whole, other].forEach((each) => each.close());
}

function joined(parts) {
  return MODEL.outputs.map((port, index) => {
    const arrays = parts.map((part) => part[index]);
    const all = new arrays[0].constructor(arrays.reduce((sum, array) => sum + array.length, 0));
    let at = 0;
    for (const array of arrays) {
      all.set(array, at);
      at += array.length;
    }
    return all;
  });
}

function compare(result, what, found, wanted) {
  let different = 0;
  wanted.forEach((array, index) => {
    const [a, b] = [found[index], array].map((each) => new Uint32Array(each.buffer, each.byteOffset, each.length));
    if (a.length !== b.length) different += Math.abs(a.length - b.length);
    for (let i = 0; i < Math.min(a.length, b.length); i++) {
      if (a[i] === b[i]) continue;
      different += 1;
      const distance = Math.abs(found[index][i] - array[i]) / Math.max(1, Math.abs(array[i]));
      result.largest = Math.max(result.largest, Number.isNaN(distance) ? Infinity : distance);
    }
    if (a.length !== b.length) result.largest = Infinity;
  });
  result.different[what] = different;
}

function samples(port) {
  const bytes = Uint8Array.from(atob(SAMPLES[port.parameter]), (letter) => letter.charCodeAt(0));
  return port.type === "int32_t" ? new Int32Array(bytes.buffer) : new Float32Array(bytes.buffer);
}

function list(outputs) {
  return Array.isArray(outputs) ? outputs : [outputs];
}

if (globalThis.process?.argv?.[1]) {
  const [{ realpathSync }, { pathToFileURL }] = await Promise.all([import("node:fs"), import("node:url")]);
  if (pathToFileURL(realpathSync(process.argv[1])).href === import.meta.url) {
    const { ok, words } = await test(process.argv[2]);
    console.log(words);
    process.exitCode = ok ? 0 : 1;
  }
}
