// Starts a program such that nothing of it has run when we first hold it. Node's own child_process would wait for the child
// behind our back and swallow its ptrace stops; so a few instructions of our own fork, reset what Node changed, stop, and
// execute the program. None of Node's code runs in the child.
import { accessSync, constants as fsConstants, statSync } from 'node:fs';
import { constants as osConstants } from 'node:os';
import { delimiter, join } from 'node:path';
import { CannotError } from '../errors/index.js';
import {
  SIGTRAP,
  ERRNO,
  PTRACE_EVENT_EXEC,
  PTRACE_O_TRACEEXEC,
  PTRACE_O_TRACESYSGOOD,
  Registers,
  SYS,
  addressOf,
  bytesOfText,
  errnoName,
  placeOwnCode,
  ptrace,
  readAuxiliaryVector,
  readExecutableHead,
  systemCall,
  textOfBytes,
  waitForThread,
} from '../linux/index.js';
import { assemble } from '../x86/index.js';
import { encoder, filesToPassOn } from './inherited.js';
import { ELF_HEAD_BYTES, checkMachine } from './preflight.js';
import type { TargetMemory } from './memory.js';

const SIGNALS = 64;
/** AT_ENTRY of the auxiliary vector: where the executable's own code begins. */
const AT_ENTRY = 9;
const INT3 = 0xcc;
const NO_FILE = -1;
/** Exit status of a child whose execve failed is 0x40 | errno, which no stop comes before. */
const EXEC_FAILED = 0x80;

const STOP_FIRST = `
    mov eax, ${SYS.getpid}
    syscall
    mov rdi, rax
    mov esi, 19                         ; SIGSTOP: the tracer takes over here
    mov eax, ${SYS.kill}
    syscall`;

/**
 * rdi path, rsi argv, rdx envp, rcx an empty struct kernel_sigaction (32 bytes of zeros: SIG_DFL), r8 descriptors that stay open (i32,
 * ended by a negative one) -> child's pid
 */
const listing = (beforeExec: string): string => `
spawn:
    push rbx
    push r12
    push r13
    push r14
    push r15
    mov rbx, rdi
    mov r15, r8
    mov r12, rsi
    mov r13, rdx
    mov r14, rcx
    mov eax, ${SYS.fork}
    syscall
    test rax, rax
    jne spawn_parent
    push ${SIGNALS}                     ; the child: handlers and ignored signals of Node are not the program's
spawn_signal:
    mov eax, ${SYS.rt_sigaction}
    mov rdi, [rsp]
    mov rsi, r14
    xor edx, edx
    mov r10, 8
    syscall
    sub qword [rsp], 1
    jne spawn_signal
spawn_file:                             ; Node marks standard input, output and error, and others, to be closed on exec
    mov edi, [r15]
    test edi, edi
    js spawn_mask
    mov eax, ${SYS.fcntl}
    mov esi, 2                          ; F_SETFD
    xor edx, edx
    syscall
    add r15, 4
    jmp spawn_file
spawn_mask:
    mov eax, ${SYS.rt_sigprocmask}
    mov edi, 2                          ; SIG_SETMASK
    mov rsi, r14
    xor edx, edx
    mov r10, 8
    syscall
${beforeExec}
    mov eax, ${SYS.execve}
    mov rdi, rbx
    mov rsi, r12
    mov rdx, r13
    syscall
    mov rdi, rax                        ; -errno
    xor edi, -1
    add edi, ${1 + EXEC_FAILED}
    mov eax, ${SYS.exit}
    syscall
spawn_parent:
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    ret
`;

/** As C wants them: a zero behind them. */
function ended(bytes: Uint8Array): Uint8Array {
  const all = new Uint8Array(bytes.length + 1);
  all.set(bytes);
  return all;
}

/** A null-terminated array of pointers to null-terminated strings, as execve wants; `keep` must outlive its use. */
function pointerArray(strings: readonly string[], keep: Uint8Array[]): Uint8Array {
  const pointers = new BigUint64Array(strings.length + 1);
  const encode = encoder();
  strings.forEach((text, i) => {
    const bytes = ended(encode(text));
    keep.push(bytes);
    pointers[i] = addressOf(bytes);
  });
  const bytes = new Uint8Array(pointers.buffer);
  keep.push(bytes);
  return bytes;
}

/** Forks a child that executes the program, `beforeExec` first. Returns its process id. @throws CannotError NOT_STARTED */
function fork(
  path: string,
  args: readonly string[],
  environment: readonly string[],
  beforeExec: string,
): number {
  const code = placeOwnCode(assemble(listing(beforeExec), 0n).bytes);
  const keep: Uint8Array[] = [];
  const pathBytes = ended(encoder()(path));
  const argv = pointerArray(args, keep);
  const envp = pointerArray(environment, keep);
  const defaultAction = new Uint8Array(32);
  const files = Int32Array.of(0, 1, 2, ...filesToPassOn(), NO_FILE);
  const pid = Number(
    code.call(
      0,
      addressOf(pathBytes),
      addressOf(argv),
      addressOf(envp),
      addressOf(defaultAction),
      addressOf(new Uint8Array(files.buffer)),
    ),
  );
  if (pid < 0) throw startFailed(path, `fork failed (${errnoName(-pid)})`);
  return pid;
}

/** Our own environment, for a program that we start. */
export function ownEnvironment(): string[] {
  return Object.entries(process.env).map(([name, value]) => `${name}=${value ?? ''}`);
}

/** Starts a program that runs at once, held by nobody. It is our child. @throws CannotError NOT_STARTED */
export function spawnFree(path: string, args: readonly string[], environment: readonly string[]): number {
  return fork(path, args, environment, '');
}

/** Why a program that we started has ended before it began: what its exit status tells of execve. */
export function startFailure(path: string, status: number | undefined): CannotError {
  if (status === undefined || status <= EXEC_FAILED) return startFailed(path, 'it ended before it began');
  const errno = status - EXEC_FAILED;
  return startFailed(
    path,
    `execve failed: ${errno === ERRNO.ENOEXEC ? 'it is not a program that the kernel can execute' : errnoName(errno)}`,
  );
}

/** Finds a program as execvp does; its path has all bytes (`bytesOfText`). @throws CannotError NO_PROGRAM */
export function findProgram(name: string): string {
  const candidates = name.includes('/')
    ? [name]
    : (process.env['PATH'] ?? '/usr/bin:/bin').split(delimiter).map((folder) => join(folder, name));
  let found: string | undefined;
  for (const given of candidates) {
    const candidate = textOfBytes(encoder()(given));
    const why = whyNoProgram(candidate);
    if (why === undefined) return candidate;
    // As execvp does: what was found first and may not be executed is told, if nothing better comes.
    if (why !== NO_SUCH_FILE) found ??= name.includes('/') ? why : `${candidate}: ${why}`;
  }
  throw new CannotError('NO_PROGRAM', {
    tried: `run ${name}`,
    why: found ?? (name.includes('/') ? NO_SUCH_FILE : 'it is in none of the folders of PATH'),
    next: 'give the path of a program',
  });
}

/** True if it is a file that may be executed. */
export function mayExecute(path: string): boolean {
  return whyNoProgram(path) === undefined;
}

const NO_SUCH_FILE = 'there is no such file';

/** Undefined: it may be executed. */
function whyNoProgram(path: string): string | undefined {
  const bytes = bytesOfText(path);
  try {
    const facts = statSync(bytes);
    if (facts.isDirectory()) return 'it is a directory';
    if (!facts.isFile()) return 'it is not a file';
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EACCES'
      ? 'you may not look into its folder'
      : NO_SUCH_FILE;
  }
  try {
    accessSync(bytes, fsConstants.X_OK);
    return undefined;
  } catch {
    return 'it is not executable (chmod +x makes it so, if it is a program)';
  }
}

/** A program of ours that stands before its first instruction (the dynamic loader has done its work), held. */
export interface SpawnedProgram {
  readonly pid: number;
}

function startFailed(path: string, why: string): CannotError {
  return new CannotError('NOT_STARTED', {
    tried: `run ${path}`,
    why,
    next: 'see that it is a program for this machine that starts without safepoke',
  });
}

/**
 * Starts `path` and stops it at its entry point: its libraries are loaded and initialised, none of its own code has run. It
 * is held by ptrace then (adopt it with `Hold.adopt`).
 *
 * @throws CannotError NOT_STARTED
 */
export function spawnStopped(
  path: string,
  args: readonly string[],
  openMemory: (pid: number) => TargetMemory,
): SpawnedProgram {
  const pid = fork(path, args, ownEnvironment(), STOP_FIRST);
  const stopped = waitForThread(pid, true, true);
  if (stopped.kind !== 'stopped') throw startFailed(path, 'the new process ended at once');
  const seized = ptrace.seize(pid, PTRACE_O_TRACEEXEC | PTRACE_O_TRACESYSGOOD);
  if (seized < 0) {
    killStopped(pid);
    throw new CannotError('NOT_PERMITTED', {
      tried: `trace ${path}`,
      why: `the kernel refused ptrace even for a child (${errnoName(-seized)})`,
      next: 'see whether a container or seccomp filter forbids ptrace; `safepoke doctor` tells more',
    });
  }
  systemCall(SYS.kill, pid, osConstants.signals.SIGCONT);
  runToExec(path, pid);
  try {
    checkMachine(readExecutableHead(pid, ELF_HEAD_BYTES) ?? new Uint8Array(ELF_HEAD_BYTES), `run ${path}`);
    runToEntry(path, pid, openMemory(pid));
  } catch (error) {
    killStopped(pid);
    throw error;
  }
  return { pid };
}

/** Ends a program that we started and that has not run yet. */
export function killStopped(pid: number): void {
  systemCall(SYS.kill, pid, osConstants.signals.SIGKILL);
  waitForThread(pid, true);
}

function runToExec(path: string, pid: number): void {
  for (;;) {
    const result = waitForThread(pid, true);
    if (result.kind === 'stopped') {
      if (result.event === PTRACE_EVENT_EXEC) return;
      // The group stop of our own SIGSTOP, and the SIGCONT that ends it, are seen as stops of their own.
      const isOurs =
        result.signal === osConstants.signals.SIGSTOP || result.signal === osConstants.signals.SIGCONT;
      ptrace.cont(pid, result.event === 0 && !isOurs ? result.signal : 0);
      continue;
    }
    throw startFailure(path, result.kind === 'exited' ? result.status : undefined);
  }
}

/** Runs the dynamic loader, up to the executable's entry point. A script's interpreter is the executable then. */
function runToEntry(path: string, pid: number, memory: TargetMemory): void {
  const entry = readAuxiliaryVector(pid)?.get(AT_ENTRY);
  if (entry === undefined) throw startFailed(path, 'its entry point is not known');
  const registers = new Registers();
  // A static program stands at its entry point already, but still inside execve, whose return will set rax: so let it hit the
  // breakpoint as well.
  const address = Number(entry);
  const original = memory.read(address, 1);
  memory.write(address, Uint8Array.of(INT3));
  ptrace.cont(pid, 0);
  for (;;) {
    const result = waitForThread(pid, true);
    if (result.kind !== 'stopped') throw startFailed(path, 'it ended while its libraries were loaded');
    ptrace.getRegisters(pid, registers);
    if (result.event === 0 && result.signal === SIGTRAP && registers.get('rip') === entry + 1n) break;
    ptrace.cont(pid, result.event === 0 ? result.signal : 0);
  }
  memory.write(address, original);
  registers.set('rip', entry);
  ptrace.setRegisters(pid, registers);
  memory.close();
}
