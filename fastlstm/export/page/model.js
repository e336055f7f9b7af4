// The model as WebAssembly: load it, open a stream for each signal, step.
//
//   import { load } from "./NAME.js";
//   const stream = (await load()).stream();
//   const y = stream.step(x);
//
// Types and sizes: NAME.d.ts. Everything runs on the calling thread; a worker or an audio worklet loads its own.

export const MODEL = null;

/** A module of one function that only processors and browsers with SIMD accept. */
const USES_SIMD = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, // header
  1, 5, 1, 96, 0, 1, 123, // type 0: () -> v128
  3, 2, 1, 0, // function 0 is of type 0
  10, 8, 1, 6, 0, 65, 0, 253, 15, 11, // its body: i8x16.splat(0)
]);

const CHUNK = 256; // steps that run() gives to the module at a time

/**
 * Load the model.
 *
 * `source` is the module: its bytes, a WebAssembly.Module, a Response, or a URL; left out, it is the file beside this
 * one, with SIMD where the browser has it. `weights` is the same for models whose weights lie in a file of their own.
 */
export async function load(source, weights) {
  const chosen = choose(source);
  const found = await read(source === undefined || chosen === source ? fileOf(chosen.file) : source);
  const module = found instanceof WebAssembly.Module ? found : await WebAssembly.compile(found);
  const instance = await WebAssembly.instantiate(module, {});
  const apart = chosen.weights ? await read(weights ?? fileOf(chosen.weights)) : undefined;
  return new Model(instance.exports, apart && new Uint8Array(apart));
}

/** The modules that lie beside this file, by the names of their targets. */
export function modules() {
  return Object.fromEntries(MODEL.modules.map((module) => [module.target, module]));
}

function choose(source) {
  if (MODEL.modules.includes(source)) return source;
  const simd = MODEL.modules.find((module) => module.target.endsWith("simd"));
  return simd && WebAssembly.validate(USES_SIMD) ? simd : MODEL.modules.find((module) => module !== simd) ?? simd;
}

function fileOf(name) {
  return new URL(name, import.meta.url);
}

async function read(source) {
  if (typeof source === "string") source = new URL(source, import.meta.url);
  if (source instanceof URL && source.protocol === "file:") {
    const { readFile } = await import("node:fs/promises");
    return readFile(source);
  }
  if (source instanceof URL) source = await fetch(source);
  if (typeof Response !== "undefined" && source instanceof Response) {
    if (!source.ok) throw new Error(`${source.url} was not loaded: ${source.status} ${source.statusText}`);
    return source.arrayBuffer();
  }
  return source;
}

/** The model in one WebAssembly instance; all its streams share the weights. */
class Model {
  #exports;
  #end; // where free memory begins
  #free = []; // states of streams that are closed
  #weights = [];
  #scratch;

  constructor(exports, weights) {
    this.#exports = exports;
    this.#end = exports.__heap_base.value;
    if (weights) {
      this.#weights = [this.#allocate(weights.length)];
      new Uint8Array(exports.memory.buffer, this.#weights[0], weights.length).set(weights);
    }
    const count = MODEL.streams ? CHUNK : 1;
    const place = (port, times) => ({ ...port, at: this.#allocate(4 * Math.max(1, port.elements) * times) });
    this.#scratch = {
      inputs: MODEL.inputs.map((port) => place(port, port.moves ? count : 1)),
      outputs: MODEL.outputs.map((port) => place(port, Math.max(count, Math.ceil(MODEL.tail / port.frames)))),
      state: this.#allocate(4 * MODEL.stateSize),
    };
  }

  /** The hash of the model's weights and structure, as in the manifest. */
  get hash() {
    const bytes = new Uint8Array(this.#exports.memory.buffer, this.#function("model_hash")());
    return new TextDecoder().decode(bytes.subarray(0, bytes.indexOf(0)));
  }

  /** Whether results have the bits of the engine in Python; otherwise they are within the manifest's tolerance. */
  get sameBits() {
    return this.#function("same_bits")() === 1;
  }

  /** Open a stream, at the model's own initial state. */
  stream() {
    if (!MODEL.streams) throw new Error(`${MODEL.name} does not stream: use call().`);
    const state = this.#free.pop() ?? this.#allocate(MODEL.stateBytes);
    const core = { ...this.#core(state), close: () => this.#free.push(state) };
    return new Stream(core);
  }

  /** Run a model that takes its inputs whole. */
  call(...inputs) {
    if (MODEL.streams) throw new Error(`${MODEL.name} streams: open a stream() and step it.`);
    const state = this.#free.pop() ?? this.#allocate(MODEL.stateBytes);
    const core = this.#core(state);
    try {
      core.init();
      const { inputs: into, outputs } = core.scratch;
      into.forEach((port, index) => core.view(port).set(checked(port, inputs, index)));
      core.refuse(core.run("call", [...into, ...outputs].map((port) => port.at)));
      return alone(outputs.map((port) => core.view(port).slice()));
    } finally {
      this.#free.push(state);
    }
  }

  /** What a stream needs of the instance that it lives in. */
  #core(state) {
    const run = (name, places) => this.#function(name)(state, ...this.#weights, ...places);
    return {
      run,
      init: () => run("init", []),
      copy: (name, place) => this.#function(name)(state, place),
      scratch: this.#scratch,
      view: (port, times = 1) => {
        const kind = port.type === "int32_t" ? Int32Array : Float32Array;
        return new kind(this.#exports.memory.buffer, port.at, port.elements * times);
      },
      floats: (at, count) => new Float32Array(this.#exports.memory.buffer, at, count),
      refuse: (frames) => {
        if (frames === 0 && MODEL.inputs.some((port) => port.type === "int32_t")) {
          throw new RangeError("An id lies outside its table; set the stream's state anew, or reset() it.");
        }
        return frames;
      },
    };
  }

  #function(name) {
    return this.#exports[`${MODEL.name}_${name}`];
  }

  #allocate(bytes) {
    const align = Math.max(16, MODEL.stateAlign);
    const at = Math.ceil(this.#end / align) * align;
    this.#end = at + bytes;
    const { memory } = this.#exports;
    const missing = this.#end - memory.buffer.byteLength;
    if (missing > 0) memory.grow(Math.ceil(missing / 65536));
    return at;
  }
}

/** One signal and its state. */
class Stream {
  #core;

  constructor(core) {
    this.#core = core;
    core.init();
  }

  /** Take one step: MODEL.hop frames of each input; returns the output, or an array where there are several. */
  step(...inputs) {
    const core = this.#opened();
    const { inputs: into, outputs } = core.scratch;
    into.forEach((port, index) => core.view(port).set(checked(port, inputs, index)));
    core.refuse(core.run("step", [...into, ...outputs].map((port) => port.at)));
    return alone(outputs.map((port) => core.view(port).slice()));
  }

  /** Take as many steps as the inputs hold; those that do not change with time are given once. */
  run(...inputs) {
    const core = this.#opened();
    const { inputs: into, outputs } = core.scratch;
    const leader = Math.max(0, into.findIndex((port) => port.moves));
    const steps = numbers(inputs[leader], into[leader]).length / into[leader].elements;
    const given = into.map((port, index) => checked(port, inputs, index, port.moves ? steps : 1));
    const results = outputs.map((port) => new (core.view(port).constructor)(port.elements * steps));
    for (let first = 0; first < steps; first += CHUNK) {
      const count = Math.min(CHUNK, steps - first);
      into.forEach((port, index) => {
        const [from, times] = port.moves ? [first, count] : [0, 1];
        core.view(port, times).set(given[index].subarray(from * port.elements, (from + times) * port.elements));
      });
      const places = [...into, ...outputs].map((port) => port.at);
      core.refuse(core.run("run", [...places, count]));
      outputs.forEach((port, index) => results[index].set(core.view(port, count), first * port.elements));
    }
    return alone(results);
  }

  /** What look-ahead still holds when the signal ends; reset() the stream afterwards. */
  finish() {
    const core = this.#opened();
    const { outputs } = core.scratch;
    const frames = core.run("finish", outputs.map((port) => port.at));
    return alone(outputs.map((port) => {
      const count = (frames * port.elements) / port.frames;
      return core.view(port, Math.ceil(frames / port.frames)).slice(0, count);
    }));
  }

  /** Go back to the model's own initial state. */
  reset() {
    this.#opened().init();
  }

  /** The state as floats, in the order of Python's stream.state; set it to go on from there. */
  get state() {
    const core = this.#opened();
    core.copy("get_state", core.scratch.state);
    return core.floats(core.scratch.state, MODEL.stateSize).slice();
  }

  set state(values) {
    const core = this.#opened();
    if (values.length !== MODEL.stateSize) {
      throw new RangeError(`A state has ${MODEL.stateSize} floats; ${values.length} were given.`);
    }
    core.floats(core.scratch.state, MODEL.stateSize).set(values);
    core.copy("set_state", core.scratch.state);
  }

  /** Give the memory back to the model, for its next stream. */
  close() {
    this.#opened().close();
    this.#core = undefined;
  }

  #opened() {
    if (!this.#core) throw new Error("The stream is closed.");
    return this.#core;
  }
}

function numbers(input, port) {
  if (typeof input === "number") return (port.type === "int32_t" ? Int32Array : Float32Array).of(input);
  return input ?? [];
}

/** Return input `index` if it is as long as it has to be. */
function checked(port, inputs, index, times = 1) {
  const given = numbers(inputs[index], port);
  if (inputs.length !== MODEL.inputs.length || given.length !== port.elements * times) {
    const wanted = MODEL.inputs.map((input) => `${input.name} (${input.elements} numbers a step)`).join(", ");
    throw new RangeError(`Expected ${wanted}; ${port.name} came with ${given.length} numbers.`);
  }
  return given.subarray ? given : Float32Array.from(given);
}

function alone(outputs) {
  return outputs.length === 1 ? outputs[0] : outputs;
}
