// Who may trace whom, and what to do where the kernel says no.
import { readFileSync } from 'node:fs';
import { bitSet, readStatus } from '../linux/index.js';

/** CAP_SYS_PTRACE, include/uapi/linux/capability.h. */
const CAP_SYS_PTRACE = 19n;
/** kernel.yama.ptrace_scope (Documentation/admin-guide/LSM/Yama.rst). */
const YAMA_SCOPE = '/proc/sys/kernel/yama/ptrace_scope';
const NOBODY_MAY = '3';

/** What this process may do. */
export interface Permissions {
  readonly isRoot: boolean;
  readonly hasPtrace: boolean;
  /** Undefined: the kernel has no Yama. */
  readonly yamaScope: string | undefined;
}

export function ownPermissions(): Permissions {
  const capabilities = bitSet(readStatus(process.pid), 'CapEff');
  let yamaScope: string | undefined;
  try {
    yamaScope = readFileSync(YAMA_SCOPE, 'latin1').trim();
  } catch {
    yamaScope = undefined;
  }
  return {
    isRoot: process.geteuid?.() === 0,
    hasPtrace: ((capabilities >> CAP_SYS_PTRACE) & 1n) !== 0n,
    yamaScope,
  };
}

/** What somebody with these permissions can do about a process that the kernel does not let them trace. */
export function permissionAdvice({ isRoot, hasPtrace, yamaScope }: Permissions = ownPermissions()): string {
  const more = '; `safepoke doctor` tells more';
  if (yamaScope === NOBODY_MAY) {
    return `kernel.yama.ptrace_scope is ${NOBODY_MAY}: nobody may trace, root neither, before the machine is started again with another`;
  }
  if (hasPtrace) {
    return 'you have CAP_SYS_PTRACE: so the process belongs to a user namespace outside of yours, or a security module (SELinux, AppArmor) protects it; trace it from outside of the container, or see the kernel’s log';
  }
  if (isRoot) return `give safepoke CAP_SYS_PTRACE, which root lacks here (--cap-add=SYS_PTRACE)${more}`;
  const yama = yamaScope === undefined || yamaScope === '0' ? '' : `, and see ${YAMA_SCOPE}`;
  return `run safepoke as the same user as the process, as root, or with CAP_SYS_PTRACE${yama}${more}`;
}
