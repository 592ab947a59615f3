import assert from 'node:assert/strict';
import { test } from 'node:test';
import { canReadBase } from './fsgsbase.js';

void test('whether programs may execute rdfsbase is tried where the kernel does not say so', () => {
  assert.ok(canReadBase());
});

void test('an illegal instruction in its place is noticed and survived, time and again', () => {
  for (let i = 0; i < 3; i++) assert.ok(!canReadBase('ud2\nnop\nnop\nnop'));
  assert.ok(canReadBase());
});
