// Runs the files of run_emitted.py in onnxruntime-web, by WebAssembly with one thread: node run_emitted.cjs FOLDER
// Beside each <name>.onnx lies a <name>.json: {"in": {name: {type, dims, data}}, "out": {name: {dims, data}}}.
const { readdirSync, readFileSync } = require("node:fs");
const { join } = require("node:path");
const ort = require("onnxruntime-web");

const version = (ort.env.versions || {}).web;

async function errorOf(path) {
  const kept = JSON.parse(readFileSync(path.replace(/\.onnx$/, ".json")));
  const session = await ort.InferenceSession.create(readFileSync(path), { executionProviders: ["wasm"] });
  const feeds = {};
  for (const [name, { type, dims, data }] of Object.entries(kept.in)) {
    const values = type === "int64" ? BigInt64Array.from(data.map(BigInt)) : Float32Array.from(data);
    feeds[name] = new ort.Tensor(type, values, dims);
  }
  const made = await session.run(feeds);
  let worst = 0;
  for (const [name, { data }] of Object.entries(kept.out)) {
    let error = 0;
    let norm = 0;
    data.forEach((v, i) => {
      error += (made[name].data[i] - v) ** 2;
      norm += v ** 2;
    });
    worst = Math.max(worst, Math.sqrt(error / Math.max(norm, 1e-60)));
  }
  return worst;
}

async function main() {
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "fatal";
  const folder = process.argv[2];
  for (const file of readdirSync(folder).filter((f) => f.endsWith(".onnx")).sort()) {
    let row;
    try {
      row = { file, error: await errorOf(join(folder, file)) };
    } catch (error) {
      row = { file, why: String(error.message || error).replace(/\s+/g, " ").slice(0, 160) };
    }
    console.log(JSON.stringify({ version, ...row }));
  }
}

main();
