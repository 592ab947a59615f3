// Collections of garbage, stacks, exceptions, C++ add-ins, workers and timers; prints what must be the same each time.
const { createHash } = require('node:crypto');
const { readdirSync } = require('node:fs');
const { Worker } = require('node:worker_threads');
const { gzipSync, gunzipSync } = require('node:zlib');

let objects = [];
for (let i = 0; i < 200000; i++) objects.push({ i, text: `x${i}` });
console.log(objects.length, readdirSync('/etc').length > 0);
objects = [];
console.log(createHash('sha256').update('hello').digest('hex'));
console.log(gunzipSync(gzipSync(Buffer.alloc(100000, 'abc'))).length);
const dive = () => dive();
try {
  dive();
} catch (error) {
  console.log(error.message);
}
try {
  JSON.parse('{');
} catch (error) {
  console.log(error.name);
}
console.log(new Error('x').stack.split('\n').length);
const map = new Map(Array.from({ length: 100000 }, (_, i) => [`k${i}`, i]));
console.log([...map.values()].reduce((a, b) => a + b));
const source = 'require("worker_threads").parentPort.postMessage([1, 2, 3].map((x) => x * x).join())';
new Worker(source, { eval: true }).on('message', (message) => {
  console.log('worker', message);
  setTimeout(() => console.log('end'), 20);
});
