// What a JIT makes of a program: hot loops over typed arrays, objects, closures, strings, maps and regular expressions.
'use strict';
const amount = Number(process.argv[2]);

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

class Vector {
  constructor(x, y) { this.x = x; this.y = y; }
  add(other) { return new Vector(this.x + other.x, this.y + other.y); }
  scale(factor) { return new Vector(this.x * factor, this.y * factor); }
}

function walk(steps) {
  let place = new Vector(1, 0), speed = new Vector(0, 0.01);
  for (let i = 0; i < steps; i++) {
    place = place.add(speed);
    speed = speed.add(place.scale(-0.0001));
  }
  return place.x.toFixed(9) + ' ' + place.y.toFixed(9);
}

function text(lines) {
  const count = new Map();
  let state = 12345;
  for (let i = 0; i < lines; i++) {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
    const word = 'w' + (state >> 8) % 499;
    count.set(word, (count.get(word) || 0) + 1);
  }
  const sorted = [...count].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
  const json = JSON.parse(JSON.stringify(sorted.map(([word, times]) => ({ word, times }))));
  return json.filter(({ word }) => /^w[13]\d?5/.test(word)).reduce((sum, { times }) => (sum * 31 + times) >>> 0, 7);
}

const results = [];
for (let i = 0; i < amount; i++) results.push(sieve(20000 + i), walk(20000), text(10000 + i));
console.log(results.join('\n'));
