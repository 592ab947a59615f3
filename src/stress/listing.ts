// What runs in the process under stress, but for the protocol itself, which is lowered from its definition.
//
//   the patcher   the first thread. In a loop: stops the others, if the protocol wants that (a rendezvous by signal: each is
//                 parked in a handler on a futex), makes a batch of changes, lets them go
//   the threads   call the functions in a loop and compare every result
//   the storm     each thread, the patcher's included, has a timer that sends it a signal; the handler is the protocol's `nmi`,
//                 whose traced functions call the same functions. It runs on parked threads too, as NMIs do; while it
//                 runs, the rendezvous is masked, as stop-machine cannot get hold of a CPU in an NMI
//   traps         SIGTRAP's handler is the protocol's `trap`; it may be interrupted by the storm, and nest in it
//
// Registers: rbx the thread's counters, everywhere; r15 and rbp as lowered code wants them.
import { FUTEX, MREMAP, PAGE, PROT, SYS, UCONTEXT_REGISTERS } from '../linux/index.js';
import { COMPARE_SITE, STORE_TEXT, SYNC_CORE, type LoweredProtocol } from '../x86/index.js';
import { MCOUNT_INSN_SIZE, type Protocol } from '../protocol/index.js';
import {
  STACK_TIMER,
  CHANGE_SIZE,
  CONTROL,
  COUNTERS,
  DATA,
  SHARED,
  SHARED_SIZE,
  STACKS,
  STACK_SIZE,
  STACK_TOP,
  TABLES,
} from './layout.js';
import type { SiteFunction } from './sites.js';

/**
 * How text is written: through /proc/self/mem; by plain stores, where it has been made writable (mprotect): one to text that has not
 * ends the process; or by putting a changed copy in the place of the pages.
 */
export type TextWriting = 'memory-file' | 'mprotect' | 'page-flip';

/** Who changes the code. */
export type Patching = 'stopped' | 'running' | 'outside';

export interface StressProgram {
  readonly protocol: Protocol;
  readonly lowered: LoweredProtocol;
  readonly writing: TextWriting;
  /** `stopped`: the threads are parked meanwhile; `running`: they are not; `outside`: another process does it. */
  readonly patching: Patching;
  readonly functions: readonly SiteFunction[];
}

/** Signals that nothing else uses: real-time ones. */
const STORM_SIGNAL = 40;
const RENDEZVOUS_SIGNAL = 41;
const SIGTRAP = 5;
/** SA_RESTORER, SA_RESTART, SA_NODEFER and SA_SIGINFO. */
const SA = { restorer: 0x0400_0000, restart: 0x1000_0000, noDefer: 0x4000_0000, info: 4 } as const;

/** A signal with a handler: the label of the handler, its flags, and what is masked meanwhile. */
export interface HandledSignal {
  readonly signal: number;
  readonly handler: string;
  readonly flags: number;
  readonly mask: bigint;
}

/** In the order in which their actions stand in TABLES. */
export function handledSignals(protocol: Protocol): readonly HandledSignal[] {
  const maskOf = (signal: number): bigint => 1n << BigInt(signal - 1);
  const flags = SA.restorer | SA.restart | SA.info;
  const both: HandledSignal[] = [
    { signal: STORM_SIGNAL, handler: 'storm_handler', flags, mask: maskOf(RENDEZVOUS_SIGNAL) },
    { signal: RENDEZVOUS_SIGNAL, handler: 'rendezvous_handler', flags, mask: 0n },
  ];
  if (protocol.trap === undefined) return both;
  return [...both, { signal: SIGTRAP, handler: 'trap_handler', flags: flags | SA.noDefer, mask: 0n }];
}

const FUTEX_WAIT = FUTEX.wait | FUTEX.privateFlag;
const FUTEX_WAKE = FUTEX.wake | FUTEX.privateFlag;
/** CLONE_VM | FS | FILES | SIGHAND | THREAD | SYSVSEM, include/uapi/linux/sched.h. */
const CLONE_THREAD_FLAGS = 0x50f00;
/** MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE and ..._PRIVATE_EXPEDITED_SYNC_CORE. */
const MEMBARRIER_REGISTER = 64;
const MEMBARRIER_SYNC_CORE = 32;
const PR_SET_PDEATHSIG = 1;
const RLIMIT_CORE = 4;
const SIGKILL = 9;
const CLOCK_MONOTONIC = 1;
const SIGEV_THREAD_ID = 4;
const MREMAP_TO = MREMAP.mayMove | MREMAP.fixed;
/** A site lies in one page or across the end of one. */
const FLIPPED = 2 * PAGE;
/**
 * Passes over all functions that one handler makes. Many where nobody traps: what is sought is a change under a running handler. Few
 * where all may trap in each, as a handler on the patcher's own thread keeps the breakpoint where it is.
 */
const PASSES_PER_SIGNAL: Readonly<Record<Patching, number>> = { stopped: 128, running: 4, outside: 4 };
/** Between two stops the threads get on for a while. */
const PAUSE_NS = 20_000;
/** Added to the period of a thread's timer for each thread before it: they drift against each other. */
const DRIFT_SHIFT = 3;

const control = (name: keyof typeof CONTROL): number => SHARED + CONTROL[name];

/** The whole listing, to be assembled at CODE; it begins at `start`. */
export function stressListing(program: StressProgram): string {
  return [
    startListing(program),
    patcherListing(program),
    threadListing(program),
    handlerListing(program),
    WRITES[program.writing],
    SURROUNDINGS,
    tracedListing(program),
    program.lowered.listing,
  ].join('\n');
}

function startListing({ lowered, protocol }: StressProgram): string {
  return `
start:
    mov rsp, ${STACKS + STACK_TOP}
    mov eax, ${SYS.prctl}                   ; nothing of this outlives safepoke
    mov edi, ${PR_SET_PDEATHSIG}
    mov esi, ${SIGKILL}
    syscall
    push 0
    push 0
    mov eax, ${SYS.setrlimit}               ; a crash is counted, not kept
    mov edi, ${RLIMIT_CORE}
    mov rsi, rsp
    syscall
    mov eax, ${SYS.mmap}                    ; descriptor 3 is the shared memory
    mov edi, ${SHARED}
    mov esi, ${SHARED_SIZE}
    mov edx, 3                              ; PROT_READ | PROT_WRITE
    mov r10, 17                             ; MAP_SHARED | MAP_FIXED
    mov r8, 3
    mov r9, 0
    syscall
    mov eax, ${SYS.open}
    mov edi, ${DATA + TABLES.memoryPath}
    mov esi, 2                              ; O_RDWR
    syscall
    mov dword [${DATA + TABLES.memoryFile}], eax
    mov eax, ${SYS.membarrier}
    mov edi, ${MEMBARRIER_REGISTER}
    mov esi, 0
    syscall
${handledSignals(protocol)
  .map(
    ({ signal }, index) => `
    mov eax, ${SYS.rt_sigaction}
    mov edi, ${signal}
    mov esi, ${DATA + TABLES.actions + index * 32}
    mov edx, 0
    mov r10, 8
    syscall`,
  )
  .join('\n')}
    mov rbx, ${control('counters')}
    mov qword [${STACKS}], ${control('counters')}
    mov r15, ${control('block')}
    sub rsp, ${lowered.frameSize}
    mov rbp, rsp
    mov r12, 1
start_clone:
    cmp r12, qword [${control('threads')}]
    ja start_cloned
    mov rsi, r12                            ; its stack, and its counters
    shl rsi, ${Math.log2(STACK_SIZE)}
    add rsi, ${STACKS}
    mov rdx, r12
    shl rdx, ${Math.log2(COUNTERS.size)}
    add rdx, ${control('counters')}
    mov [rsi], rdx
    add rsi, ${STACK_TOP}
    mov eax, ${SYS.clone}
    mov edi, ${CLONE_THREAD_FLAGS}
    mov edx, 0
    mov r10, 0
    mov r8, 0
    syscall
    test rax, rax
    je thread_start
    add r12, 1
    jmp start_clone
start_cloned:
    mov eax, dword [${control('ready')}]
    cmp rax, qword [${control('threads')}]
    jae start_ready
    call short_sleep
    jmp start_cloned
start_ready:
${protocol.patcherMasked === true ? '' : '    call start_timer'}
    call look_at_clocks
    mov rax, qword [${control('lastTicks')}]
    mov qword [${control('firstTicks')}], rax
    mov rax, qword [${control('lastNs')}]
    mov qword [${control('firstNs')}], rax
    mov dword [${control('started')}], 1
    mov r13, ${DATA + TABLES.changes}
`;
}

function patcherListing({ protocol, patching, lowered, functions }: StressProgram): string {
  const slot = (name: string): number => lowered.slots.get(name) ?? 0;
  const region = Math.min(...functions.map((f) => f.site));
  const regionEnd = Math.max(...functions.map((f) => f.site)) + MCOUNT_INSN_SIZE;
  // If it fails, each change says so.
  const begin =
    protocol.begin === undefined
      ? ''
      : `
    mov qword [rbp+${slot('region')}], ${region}
    mov qword [rbp+${slot('region_length')}], ${regionEnd - region}
    call ${protocol.begin}`;
  const changesEnd = DATA + TABLES.changes + 2 * functions.length * CHANGE_SIZE;
  const work =
    patching === 'outside'
      ? '    call short_sleep'
      : `${patching === 'stopped' ? '    call stop_threads' : ''}
${begin}
    mov r14, qword [${control('batch')}]
patch_next:
    mov rax, [r13]
    mov [rbp+${slot('ip')}], rax
    mov rax, [r13+8]
    mov [rbp+${slot('old_code')}], rax
    mov rax, [r13+16]
    mov [rbp+${slot('new_code')}], rax
${lowered.slots.has('length') ? `    mov qword [rbp+${slot('length')}], ${MCOUNT_INSN_SIZE}` : ''}
    call read_ticks
    mov r12, rax
    call ${protocol.patch}
    call read_ticks
    sub rax, r12
    add qword [${control('ticks')}], rax
    cmp rax, qword [${control('longestTicks')}]
    jbe patch_not_longest
    mov qword [${control('longestTicks')}], rax
patch_not_longest:
    add qword [${control('modifications')}], 1
    cmp qword [rbp+${slot('result')}], 0
    je patch_made
    add qword [${control('refused')}], 1
patch_made:
    add r13, ${CHANGE_SIZE}
    cmp r13, ${changesEnd}
    jb patch_same_round
    mov r13, ${DATA + TABLES.changes}
patch_same_round:
    sub r14, 1
    jne patch_next
${protocol.end === undefined ? '' : `    call ${protocol.end}`}
${patching === 'stopped' ? '    call release_threads\n    call short_sleep' : ''}`;
  return `
patch_batch:
${work}
    call look_at_clocks
    mov rax, qword [${control('lastNs')}]
    cmp rax, qword [${control('deadline')}]
    jae patch_over
    mov rax, qword [${control('modifications')}]
    cmp rax, qword [${control('limit')}]
    jb patch_batch
patch_over:
    mov qword [${control('finished')}], 1
    mov eax, ${SYS.exit_group}
    mov edi, 0
    syscall

; kstop_machine: returns when every thread stands in the rendezvous
stop_threads:
    push r12
    mov r12, 1
stop_next:
    cmp r12, qword [${control('threads')}]
    ja stop_wait
    mov eax, ${SYS.getpid}
    syscall
    mov rdi, rax
    mov rsi, r12
    shl rsi, ${Math.log2(COUNTERS.size)}
    mov esi, dword [rsi+${control('counters') + COUNTERS.tid}]
    mov edx, ${RENDEZVOUS_SIGNAL}
    mov eax, ${SYS.tgkill}
    syscall
    add r12, 1
    jmp stop_next
stop_wait:
    mov edx, dword [${control('parked')}]
    cmp rdx, qword [${control('threads')}]
    jae stop_done
    mov eax, ${SYS.futex}
    mov edi, ${control('parked')}
    mov esi, ${FUTEX_WAIT}
    mov r10, 0
    syscall
    jmp stop_wait
stop_done:
    pop r12
    ret

release_threads:
    mov dword [${control('parked')}], 0
    lock add dword [${control('generation')}], 1
    mov eax, ${SYS.futex}
    mov edi, ${control('generation')}
    mov esi, ${FUTEX_WAKE}
    mov edx, 0x7fffffff
    syscall
    ret

look_at_clocks:
    sub rsp, 24
    mov eax, ${SYS.clock_gettime}
    mov edi, ${CLOCK_MONOTONIC}
    mov rsi, rsp
    syscall
    mov rax, [rsp]
    mov ecx, 1000000000
    mul rcx
    add rax, [rsp+8]
    mov qword [${control('lastNs')}], rax
    call read_ticks
    mov qword [${control('lastTicks')}], rax
    add rsp, 24
    ret

read_ticks:
    rdtsc
    shl rdx, 32
    or rax, rdx
    ret

short_sleep:
    push ${PAUSE_NS}
    push 0
    mov eax, ${SYS.nanosleep}
    mov rdi, rsp
    mov esi, 0
    syscall
    add rsp, 16
    ret
`;
}

function threadListing({ protocol, lowered }: StressProgram): string {
  const work = protocol.thread ?? 'traced_thread_work';
  return `
thread_start:
    mov rax, rsp
    and rax, ${-STACK_SIZE}
    mov rbx, [rax]
    mov r15, ${control('block')}
    sub rsp, ${lowered.frameSize}
    mov rbp, rsp
    mov eax, ${SYS.gettid}
    syscall
    mov [rbx+${COUNTERS.tid}], rax
    lock add dword [${control('ready')}], 1
thread_wait:
    pause
    cmp dword [${control('started')}], 0
    je thread_wait
    call start_timer
thread_loop:
    call read_ticks
    mov r12, rax
    call ${work}
    call read_ticks
    sub rax, r12
    cmp rax, [rbx+${COUNTERS.longestPass}]
    jbe thread_loop
    mov [rbx+${COUNTERS.longestPass}], rax
    jmp thread_loop

; the storm: a timer of CLOCK_MONOTONIC that sends this thread the signal
start_timer:
    cmp qword [${control('stormPeriod')}], 0
    je start_timer_done
    sub rsp, 72
    mov eax, ${SYS.gettid}
    syscall
    mov qword [rsp], 0                      ; struct sigevent
    mov dword [rsp+8], ${STORM_SIGNAL}
    mov dword [rsp+12], ${SIGEV_THREAD_ID}
    mov dword [rsp+16], eax
    mov eax, ${SYS.timer_create}
    mov edi, ${CLOCK_MONOTONIC}
    mov rsi, rsp
    mov rdx, rsp
    and rdx, ${-STACK_SIZE}
    add rdx, ${STACK_TIMER}
    syscall
    add rsp, 72
; once only: the handler arms it again when it is done. A signal that came every so often, whatever else happens, would leave
; the patcher no time at all where the handler takes longer
arm_timer:
    mov rdi, rsp
    and rdi, ${-STACK_SIZE}
    mov edi, dword [rdi+${STACK_TIMER}]
    mov rax, rbx
    sub rax, ${control('counters')}
    shl rax, ${DRIFT_SHIFT}
    add rax, qword [${control('stormPeriod')}]
    push rax                                ; struct itimerspec
    push 0
    push 0
    push 0
    mov eax, ${SYS.timer_settime}
    mov esi, 0
    mov rdx, rsp
    mov r10, 0
    syscall
    add rsp, 32
start_timer_done:
    ret
`;
}

function handlerListing({ protocol, lowered }: StressProgram): string {
  const context = `
    mov rax, rsp
    and rax, ${-STACK_SIZE}
    mov rbx, [rax]
    mov r15, ${control('block')}
    sub rsp, ${lowered.frameSize}
    mov rbp, rsp`;
  const trap =
    protocol.trap === undefined
      ? ''
      : `
trap_handler:                               ; rdx struct ucontext
    mov r14, rdx${context}
    add qword [rbx+${COUNTERS.traps}], 1
    mov rax, [r14+${UCONTEXT_REGISTERS.rip}]
    sub rax, 1
    mov [rbp+${lowered.slots.get('trapped_ip') ?? 0}], rax
    call ${protocol.trap}
    jmp retry

emulate:                                    ; rdi code buffer
    mov rsp, rbp
    mov rax, [rbp+${lowered.slots.get('trapped_ip') ?? 0}]
    add rax, 5
    cmp byte [rdi], -24                    ; 0xe8, call rel32
    jne emulate_done                        ; a nop
    mov rcx, [r14+${UCONTEXT_REGISTERS.rsp}]
    sub rcx, 8
    mov [rcx], rax
    mov [r14+${UCONTEXT_REGISTERS.rsp}], rcx
    movsxd rcx, dword [rdi+1]
    add rax, rcx
emulate_done:
    mov [r14+${UCONTEXT_REGISTERS.rip}], rax
    add rsp, ${lowered.frameSize}
    ret

retry:
    mov rsp, rbp
    mov rax, [rbp+${lowered.slots.get('trapped_ip') ?? 0}]
    mov [r14+${UCONTEXT_REGISTERS.rip}], rax
    add rsp, ${lowered.frameSize}
    ret`;
  return `
storm_handler:${context}
    add qword [rbx+${COUNTERS.signals}], 1
    call ${protocol.nmi}
    call arm_timer
    add rsp, ${lowered.frameSize}
    ret

rendezvous_handler:
    mov ebx, dword [${control('generation')}] ; cannot change before this thread is counted
    mov eax, 1
    lock xadd dword [${control('parked')}], eax
    add eax, 1
    cmp rax, qword [${control('threads')}]
    jne rendezvous_wait
    mov eax, ${SYS.futex}
    mov edi, ${control('parked')}
    mov esi, ${FUTEX_WAKE}
    mov edx, 1
    syscall
rendezvous_wait:
    cmp dword [${control('generation')}], ebx
    jne rendezvous_over
    mov eax, ${SYS.futex}
    mov edi, ${control('generation')}
    mov esi, ${FUTEX_WAIT}
    mov edx, ebx
    mov r10, 0
    syscall
    jmp rendezvous_wait
rendezvous_over:
    ret
${trap}

restorer:
    mov eax, ${SYS.rt_sigreturn}
    syscall
`;
}

/** probe_kernel_write: pwrite to /proc/self/mem, which writes text that is not writable, and returns an error where it cannot. */
const MEMORY_FILE_WRITE = `
write_text:
    add rdi, rdx
    add rsi, rdx
    mov r10, rdi
    mov rdx, rcx
    mov edi, dword [${DATA + TABLES.memoryFile}]
    mov eax, ${SYS.pwrite64}
    syscall
    cmp rax, rdx
    jne write_text_failed
    mov eax, 0
    ret
write_text_failed:
    mov eax, -14
    ret
`;

/** Nothing need be done before text can be written. */
const NO_LOCKS = `
unlock_text:
lock_text:
    mov eax, 0
    ret
`;

const MPROTECT_WRITE = `${STORE_TEXT}
unlock_text:
    mov edx, ${PROT.read | PROT.write | PROT.exec}
    jmp change_rights
lock_text:
    mov edx, ${PROT.read | PROT.exec}
change_rights:
    lea rsi, [rdi+rcx+${PAGE - 1}]
    and rdi, ${-PAGE}
    and rsi, ${-PAGE}
    sub rsi, rdi
    mov eax, ${SYS.mprotect}
    syscall
    test eax, eax
    je change_rights_done
    mov eax, -14
change_rights_done:
    ret
`;

/** Read-copy-update of text pages: a changed copy is moved over them. Nobody sees a mixture: the old pages go first, for all. */
const PAGE_FLIP_WRITE = `
write_text:
    push rbx
    push r12
    push r13
    push r14
    lea r12, [rdi+rdx]
    lea r13, [rsi+rdx]
    mov r14, rcx
    mov rbx, rdi
    and rbx, ${-PAGE}
    mov eax, ${SYS.mmap}
    mov edi, 0
    mov esi, ${FLIPPED}
    mov edx, 3                              ; PROT_READ | PROT_WRITE
    mov r10, 34                             ; MAP_PRIVATE | MAP_ANONYMOUS
    mov r8, -1
    mov r9, 0
    syscall
    cmp rax, ${-PAGE}
    ja write_text_failed
    mov ecx, ${FLIPPED - 8}
write_text_copy:
    mov rdx, [rbx+rcx]
    mov [rax+rcx], rdx
    sub rcx, 8
    jns write_text_copy
    sub r12, rbx
    add r12, rax
write_text_byte:
    sub r14, 1
    js write_text_flip
    mov dl, byte [r13+r14]
    mov byte [r12+r14], dl
    jmp write_text_byte
write_text_flip:
    mov r12, rax
    mov rdi, rax
    mov esi, ${FLIPPED}
    mov edx, 5                              ; PROT_READ | PROT_EXEC
    mov eax, ${SYS.mprotect}
    syscall
    mov rdi, r12
    mov esi, ${FLIPPED}
    mov edx, ${FLIPPED}
    mov r10, ${MREMAP_TO}
    mov r8, rbx
    mov eax, ${SYS.mremap}
    syscall
    cmp rax, rbx
    jne write_text_failed
    mov eax, 0
write_text_end:
    pop r14
    pop r13
    pop r12
    pop rbx
    ret
write_text_failed:
    mov eax, -14
    jmp write_text_end
`;

const WRITES: Readonly<Record<TextWriting, string>> = {
  'memory-file': MEMORY_FILE_WRITE + NO_LOCKS,
  mprotect: MPROTECT_WRITE,
  'page-flip': PAGE_FLIP_WRITE + NO_LOCKS,
};

const SURROUNDINGS = `${COMPARE_SITE}
${SYNC_CORE}

sync_all:
    mov eax, ${SYS.membarrier}
    mov edi, ${MEMBARRIER_SYNC_CORE}
    mov esi, 0
    syscall
    ret
`;

function tracedListing({ functions, patching }: StressProgram): string {
  const calls = functions.map(
    ({ entry, results }, index) => `
    mov eax, ${entry}
    call rax
    sub eax, ${results[0]}
    cmp eax, ${results[1] - results[0]}
    jbe pass_right_${index}
    add qword [rbx+${COUNTERS.wrong}], 1
pass_right_${index}:`,
  );
  return `
traced_lockdep_off:
traced_thread_work:
${calls.join('\n')}
    add qword [rbx+${COUNTERS.calls}], ${functions.length}
    ret

traced_handlers:
    push r12
    mov r12, ${PASSES_PER_SIGNAL[patching]}
handlers_pass:
    call traced_thread_work
    sub r12, 1
    jne handlers_pass
    pop r12
    ret
`;
}
