import assert from 'node:assert/strict';
import { test } from 'node:test';
import { permissionAdvice } from './permission.js';

test('nobody is told to get a permission that they have', () => {
  const plain = permissionAdvice({ isRoot: false, hasPtrace: false, yamaScope: '1' });
  assert.match(plain, /as root, or with CAP_SYS_PTRACE, and see .*ptrace_scope/);
  const withoutYama = permissionAdvice({ isRoot: false, hasPtrace: false, yamaScope: undefined });
  assert.doesNotMatch(withoutYama, /ptrace_scope/);
  const weakRoot = permissionAdvice({ isRoot: true, hasPtrace: false, yamaScope: '0' });
  assert.match(weakRoot, /CAP_SYS_PTRACE, which root lacks here/);
  for (const isRoot of [true, false]) {
    const capable = permissionAdvice({ isRoot, hasPtrace: true, yamaScope: '1' });
    assert.match(capable, /user namespace .*security module/);
    assert.doesNotMatch(capable, /as root|with CAP_SYS_PTRACE/);
  }
  const locked = permissionAdvice({ isRoot: true, hasPtrace: true, yamaScope: '3' });
  assert.match(locked, /nobody may trace/);
});
