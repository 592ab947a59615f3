// What can be known of a process before anything is done to it. Each refusal says what to do.
import { CannotError } from '../errors/index.js';
import { readExecutableHead, readStatus, readThreads, showsEnd } from '../linux/index.js';
import { hasFsgsbase } from './fsgsbase.js';
import { permissionAdvice } from './permission.js';
import { SECCOMP_FILTER } from './seccomp.js';

/** ELF identification: class 2 is 64-bit, machine 62 is x86-64 (System V gABI, "ELF Header"; psABI 4.1). */
const ELFCLASS64 = 2;
const EM_X86_64 = 62;
const EI_CLASS = 4;
const E_MACHINE = 18;
export const ELF_HEAD_BYTES = 64;

/** As SECCOMP_FILTER. */
const SECCOMP_STRICT = '1';

/** What the preflight found that later decisions need. */
export interface Preflight {
  readonly threads: readonly number[];
  /** A seccomp filter is installed: gettid in a new thread might be refused, or worse. */
  readonly seccompFilter: boolean;
}

/** Refuses what is not a 64-bit x86-64 program; `head` is the beginning of its file. @throws CannotError NOT_X86_64 */
export function checkMachine(head: Uint8Array, tried: string): void {
  if (head[EI_CLASS] === ELFCLASS64 && (head[E_MACHINE] | (head[E_MACHINE + 1] << 8)) === EM_X86_64) return;
  throw new CannotError('NOT_X86_64', {
    tried,
    why: head[EI_CLASS] === ELFCLASS64 ? 'it is not an x86-64 program' : 'it is a 32-bit program',
    next: 'safepoke traces 64-bit x86-64 programs only',
  });
}

/**
 * Looks at a process without touching it.
 *
 * @throws CannotError NO_PROCESS, ZOMBIE, KERNEL_THREAD, ALREADY_TRACED, NOT_X86_64, NOT_PERMITTED, SECCOMP, PROCESSOR
 */
export function preflight(pid: number): Preflight {
  const tried = `trace process ${pid}`;
  const status = readStatus(pid);
  if (status === undefined) {
    throw new CannotError('NO_PROCESS', {
      tried,
      why: 'there is no such process',
      next: 'give the id of a running process, for example $(pidof redis-server)',
    });
  }
  const threadGroup = Number(status.get('Tgid'));
  if (threadGroup !== pid) {
    throw new CannotError('NOT_A_PROCESS', {
      tried,
      why: `${pid} is a thread of process ${threadGroup}`,
      next: `give -p ${threadGroup}`,
    });
  }
  if (pid === process.pid) {
    throw new CannotError('SELF', { tried, why: 'that is safepoke itself', next: 'give another process' });
  }
  if (showsEnd(status)) {
    throw new CannotError('ZOMBIE', {
      tried,
      why: 'it has ended already and only waits for its parent (a zombie)',
      next: 'give the id of a running process',
    });
  }
  if (!status.has('VmSize')) {
    throw new CannotError('KERNEL_THREAD', {
      tried,
      why: 'it is a kernel thread, which has no user-space code',
      next: 'use ftrace or bpftrace for the kernel',
    });
  }
  const tracer = status.get('TracerPid') ?? '0';
  if (tracer !== '0') {
    throw new CannotError('ALREADY_TRACED', {
      tried,
      why: `process ${tracer} (a debugger or another tracer) traces it already`,
      next: 'end that tracer first',
    });
  }
  const head = readExecutableHead(pid, ELF_HEAD_BYTES);
  if (head === undefined || head.length < ELF_HEAD_BYTES) {
    throw new CannotError('NOT_PERMITTED', {
      tried,
      why: 'the kernel does not let this user look into it',
      next: permissionAdvice(),
    });
  }
  checkMachine(head, tried);
  if (status.get('Seccomp') === SECCOMP_STRICT) {
    throw new CannotError('SECCOMP', {
      tried,
      why: 'it runs in seccomp strict mode and would be killed by any system call made for us',
      next: 'start it without seccomp, or trace it before it locks itself in',
    });
  }
  if (!hasFsgsbase()) {
    throw new CannotError('PROCESSOR', {
      tried,
      why: 'this processor or kernel does not let programs execute rdfsbase, which the recorder needs',
      next: 'use Linux 5.9 or later on a processor with FSGSBASE (Intel since 2012, AMD since 2014), without nofsgsbase',
    });
  }
  return {
    threads: readThreads(pid) ?? [],
    seccompFilter: status.get('Seccomp') === SECCOMP_FILTER,
  };
}
