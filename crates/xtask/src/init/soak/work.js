// What a JIT, its garbage collector and its threads do: numbers, objects, strings, buffers, WebAssembly. The output is the same everywhere.
'use strict';
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
const crypto = require('crypto');
const zlib = require('zlib');

function sieve(limit) {
  const composite = new Uint8Array(limit + 1);
  let count = 0;
  for (let i = 2; i <= limit; i++) {
    if (composite[i]) continue;
    count++;
    for (let j = i * 2; j <= limit; j += i) composite[j] = 1;
  }
  return count;
}

function matrix(size) {
  const make = (f) => Float64Array.from({ length: size * size }, (_, i) => f(i / size | 0, i % size));
  const a = make((y, x) => Math.sin(y) + x), b = make((y, x) => Math.cos(x) - y), c = make(() => 0);
  for (let y = 0; y < size; y++)
    for (let k = 0; k < size; k++)
      for (let x = 0; x < size; x++) c[y * size + x] += a[y * size + k] * b[k * size + x];
  return c.reduce((sum, value) => sum + value, 0).toFixed(3);
}

function objects(count) {
  let list = null, kept = [];
  for (let i = 0; i < count; i++) {
    list = { next: i % 1000 ? list : null, value: i, text: 'item ' + i };
    if (i % 10 === 0) kept.push({ ...list, next: null });
  }
  const map = new Map(kept.map((one) => [one.text, one.value]));
  const json = JSON.parse(JSON.stringify([...map]));
  return json.filter(([text]) => /^item \d*7\d0$/.test(text)).reduce((sum, [, value]) => sum + value, 0);
}

function power() {
  let digits = 0;
  for (const digit of (2n ** 4423n - 1n).toString()) digits += Number(digit);
  return digits;
}

// (func (param i32) (result i32)): the sum of the squares below it.
function assembly(limit) {
  const code = Uint8Array.from([
    0, 97, 115, 109, 1, 0, 0, 0, 1, 6, 1, 96, 1, 127, 1, 127, 3, 2, 1, 0, 7, 5, 1, 1, 115, 0, 0, 10, 33, 1, 31, 1, 2, 127,
    3, 64, 32, 2, 32, 1, 32, 1, 108, 106, 33, 2, 32, 1, 65, 1, 106, 34, 1, 32, 0, 72, 13, 0, 11, 32, 2, 11,
  ]);
  return new WebAssembly.Instance(new WebAssembly.Module(code)).exports.s(limit);
}

function buffers() {
  const text = Buffer.from('The quick brown fox jumps over the lazy dog. '.repeat(2000));
  const back = zlib.gunzipSync(zlib.gzipSync(text));
  return crypto.createHash('sha256').update(back).digest('hex').slice(0, 16) + ' ' + back.equals(text);
}

function all() {
  return [sieve(200000), matrix(60), objects(50000), power(), assembly(1000000), buffers()].join(' ');
}

if (isMainThread) {
  const rounds = Number(process.argv[2]);
  for (let i = 0; i < rounds; i++) console.log('main', all());
  const work = (id) => new Promise((done, failed) => {
    const worker = new Worker(__filename, { workerData: id });
    worker.on('message', done).on('error', failed);
  });
  Promise.all([1, 2, 3, 4].map(work)).then((results) => {
    console.log('workers', new Set(results).size, results[0]);
  });
} else {
  parentPort.postMessage(all());
}
