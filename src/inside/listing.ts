// The code that is loaded with a program, but for the protocol itself, which is lowered from its definition, and the stubs of
// handlers (shared-object.ts).
//
//   init         called by the dynamic loader before all else: maps the block, starts the agent's thread, waits until the tracer
//                has changed the code, and leaves no trace of us in environment and descriptors
//   agent        the agent's thread: the same commands as where it was injected, and one more: to make changes
//   rendezvous   the handler of the signal that calls threads together: tells where the thread was, waits, goes back
//   shim         runs instead of each handler of the program: the protocol's `nmi`, whose handlers are the program's
//   wrappers     stand before the C library's functions that install handlers, change masks and jump, and (executing.ts) execute others
//
// The shim and the wrappers have the frame of "push rbp; mov rbp, rsp" all along, and unwind tables that say so: an exception or
// a cancellation that goes through them finds its way. While a handler runs the rendezvous is masked, as stop-machine cannot get
// hold of a CPU in an NMI; a thread in which it is not, though it has counted itself, was left by a jump, or unmasked it.
import { AGENT, AGENT_THREAD_FLAGS_APART, FURTHER_ACTION, agentThreadListing } from '../agent/index.js';
import {
  EVERYBODY,
  FUTEX,
  FUTEX_OWNER_DIED,
  GLIBC_TID_OFFSET,
  MAP,
  O_CLOEXEC,
  O_RDWR,
  PROT,
  SIGNAL_SET_BYTES,
  SIG_UNBLOCK,
  SYS,
  UCONTEXT_REGISTERS,
  MADV,
} from '../linux/index.js';
import type { Protocol } from '../protocol/index.js';
import { FALSE_EINTR } from '../target/index.js';
import { SYNC_CORE, type LoweredProtocol } from '../x86/index.js';
import { actionsListing } from './actions.js';
import { executingListing } from './executing.js';
import {
  BLOCK,
  BUFFER_SIZE,
  CHANGE,
  HANDLERS_MAX,
  OBJECT_DATA,
  OWN_COUNT,
  OWN_COUNTS_MAX,
  PLACE,
  PLACES_MAX,
  PRIVATE,
  RENDEZVOUS_SIGNAL,
  STUBS,
  STUB_SIZE,
  TEXT,
  OWN_PAGES,
  loadBlock,
} from './layout.js';
import {
  ALL_BUT_RENDEZVOUS,
  ALL_SIGNALS,
  RENDEZVOUS_ALONE,
  SIG_BLOCK,
  SIG_SETMASK,
  changeMask,
} from './signal-mask.js';
import { realSlot, wrapped, wrappersListing } from './wrappers.js';

/** Called by the protocol while its patcher waits. */
export const WHILE_WAITING = 'patcher_waits';

/** What the agent's thread can do besides. */
export const MAKE_CHANGES = FURTHER_ACTION;
export const ADOPT_HANDLERS = FURTHER_ACTION + 1;

/** A helper that cannot write looks so often whether the patcher has. */
const HELPER_PAUSE_NS = 20_000;
const ENOSYS = 38;
const EINTR = -4;
const EFAULT = -14;
export const EBUSY = -16;
const RTLD_NEXT = -1;
/** BLOCK.startFailure of a program without a C library: no error of the kernel's. */
export const NO_LIBRARY = -4096;
/** Exit status of a program that was to be traced from its beginning where it cannot be: our memory cannot be mapped, or startFailure tells. */
export const NO_BLOCK_STATUS = 125;

/** `syscall`, and what C libraries put the number into eax with before it: at most so many bytes before. */
const FARTHEST_NUMBER = 24;
const SYSCALL = 0x050f;
const MOV_EAX = -0x48;
const XOR_EAX_EAX = -0x3fcf;

/** Calls that no restart flag makes go on after a handler (signal(7)), besides: poll, select, pause, nanosleep, msgrcv, futex, ... */
const RESTARTED = [...FALSE_EINTR, 7, 23, 34, 35, 69, 70, 130, 202, 230, 270, 271] as const;

/**
 * Our thread-local storage. All u32: counts of the protocol that the thread holds, one for each handler that it is in; handlers that
 * it has ever begun; 1: the rendezvous is masked, for a handler; the number of the rendezvous in which it stands, or 0. u64: where its
 * counts stand (layout.ts), 0: not known yet, NOWHERE: there is no room; signals that wait until a handler of theirs need not wait.
 */
export const THREAD_LOCAL = {
  nested: 0,
  begun: 4,
  masked: 8,
  standing: 12,
  ownCount: 16,
  withheld: 24,
  size: 32,
} as const;
const NOWHERE = 1;
/** Places at which a thread looks for room. */
const OWN_COUNT_PROBES = 16;

/**
 * Below rbp in the shim: r15, rbx, the three arguments, the handler's number, counts held before, 1 once it is counted among the
 * thread's own, the signal (as a mask) that waits meanwhile or 0; then the protocol's frame.
 */
const SHIM = {
  signal: 24,
  info: 32,
  context: 40,
  handler: 48,
  held: 56,
  isCounted: 64,
  withheld: 72,
  room: 80,
} as const;

/** On the stack of a thread in the rendezvous: counts still to be taken back and made again, handlers begun, a mask. */
const STAND = { toLeave: 0, toEnter: 8, begun: 16, mask: 24, size: 40 } as const;
/** Registers that it saves between those and its frame. */
const STAND_SAVED = 5 * 8;

/** What unwinders tell a personality routine, and what it says: go on (C++ ABI for Itanium, exception handling, 1.6). */
const UA_CLEANUP_PHASE = 2;
const URC_CONTINUE_UNWIND = 8;

export function insideListing(protocol: Protocol, lowered: LoweredProtocol): string {
  const { begin, end } = protocol;
  if (begin === undefined || end === undefined)
    throw new Error(`protocol ${protocol.name} says nothing of text that must be unlocked`);
  const shimFrame = -(SHIM.room + lowered.frameSize);
  const standFrame = STAND.size + lowered.frameSize + STAND_SAVED;
  return `
init:                                       ; rdi argc, rsi argv, rdx envp
    push rbp
    mov rbp, rsp
    push rbx
    push r12
    push r13
    push r14
    push r15
    sub rsp, 24
    mov r12, rdx
    mov eax, ${SYS.mmap}
    xor edi, edi
    mov esi, ${BLOCK.size}
    mov edx, ${PROT.read | PROT.write}
    mov r10d, ${MAP.shared}
    mov r8d, [rel ${PRIVATE.blockFile}]
    mov r9, [rel ${PRIVATE.blockOffset}]
    xor r13d, r13d                          ; 1: without us
    syscall
    cmp rax, -4096
    ja init_no_block
    mov rbx, rax
    ; a child that is forked has zeros in its place
    mov eax, ${SYS.mmap}
    xor edi, edi
    mov esi, ${OWN_PAGES.size}
    mov edx, ${PROT.read | PROT.write}
    mov r10d, ${MAP.private | MAP.anonymous}
    mov r8, -1
    xor r9d, r9d
    syscall
    cmp rax, -4096
    ja init_no_block
    mov [rel ${PRIVATE.zeros}], rax
    mov rdi, rax
    lea rcx, [rax+${OWN_PAGES.distance}]
    mov [rel ${PRIVATE.blockAt}], rcx
    mov rdx, rbx
    sub rdx, rax
    mov [rax+${OWN_PAGES.distance}], rdx
    mov eax, ${SYS.madvise}
    mov esi, ${OWN_PAGES.size}
    mov edx, ${MADV.wipeOnFork}
    syscall
    test eax, eax
    jne init_no_block
    mov eax, ${SYS.madvise}
    mov rdi, rbx
    mov esi, ${BLOCK.size}
    mov edx, ${MADV.dontFork}
    syscall
    test eax, eax
    jne init_no_block
    mov rax, rbx
    cmp qword [rel ${PRIVATE.dlsym}], 0
    je init_no_library
    cmp qword [rel ${PRIVATE.errnoLocation}], 0
    je init_no_library
    mov [rbx+${BLOCK.address}], rax
    lea rax, [rel 0]
    mov [rbx+${BLOCK.object}], rax
    lea rax, [rel agent]
    mov [rbx+${AGENT.stack}], rax
    mov eax, ${SYS.getpid}
    syscall
    mov [rel ${PRIVATE.owner}], eax
    mov [rbx+${BLOCK.pid}], eax
    ; the signal of the rendezvous, and the agent's thread with all signals blocked
    lea rax, [rel rendezvous]
    mov [rel ${PRIVATE.action}], rax
    lea rax, [rel restorer]
    mov [rel ${PRIVATE.action + 16}], rax
    mov eax, ${SYS.rt_sigaction}
    mov edi, ${RENDEZVOUS_SIGNAL}
    lea rsi, [rel ${PRIVATE.action}]
    xor edx, edx
    mov r10d, ${SIGNAL_SET_BYTES}
    syscall
    mov qword [rsp], ${ALL_SIGNALS}
${changeMask(SIG_SETMASK, 'rsp', 'rsp+8')}
    mov r10, ${ALL_BUT_RENDEZVOUS}           ; whoever has executed the program may have blocked it
    and [rsp+8], r10
    mov eax, ${SYS.clone}
    mov edi, ${AGENT_THREAD_FLAGS_APART}
    lea rsi, [rbx+${AGENT.stack}]
    xor edx, edx
    xor r10d, r10d
    lea r8, [rbx+${AGENT.threadBlock}]
    mov r9, rbx
    syscall
    test rax, rax
    jne init_parent
    ret                                     ; the new thread: to agent
init_parent:
    js init_no_thread
    mov [rbx+${BLOCK.agentTid}], eax
init_unmask:
${changeMask(SIG_SETMASK, 'rsp+8')}
init_resolve:
    cmp qword [rel ${PRIVATE.dlsym}], 0
    je init_cannot_resolve
    cmp qword [rel ${PRIVATE.errnoLocation}], 0
    je init_cannot_resolve
${wrapped
  .map(
    ({ name }, index) => `
    mov rdi, ${RTLD_NEXT}
    lea rsi, [rel ${wrapped[index].nameAddress}]
    call qword [rel ${PRIVATE.dlsym}]
    test rax, rax
    jne init_found_${name}
    lea rax, [rel missing]
init_found_${name}:
    mov [rel ${realSlot(name)}], rax`,
  )
  .join('\n')}
init_resolved:
    test r13d, r13d
    jne init_go
    ; the first place of a rendezvous that is over when the program may begin
    lea r14, [rbx+${BLOCK.places}]
    lea rax, [rel init_wait]
    mov [r14+${PLACE.rip}], rax
    lea rax, [rsp-256]
    mov [r14+${PLACE.rsp}], rax
    rdfsbase rax
    mov [r14+${PLACE.fsBase}], rax
    mov eax, ${SYS.gettid}
    syscall
    mov [r14+${PLACE.tid}], rax
    rdfsbase rcx
    cmp eax, [rcx+${GLIBC_TID_OFFSET}]
    jne init_tid_elsewhere
    mov dword [rel ${PRIVATE.knowsThreads}], 1
init_tid_elsewhere:
    mov dword [rbx+${BLOCK.waiting}], 1
init_wait:
    cmp dword [rbx+${BLOCK.go}], 0
    jne init_go
    mov eax, [rbx+${AGENT.owner}]
    test eax, ${FUTEX_OWNER_DIED}
    jne init_go
    mov eax, ${SYS.futex}
    lea rdi, [rbx+${BLOCK.go}]
    mov esi, ${FUTEX.wait}
    xor edx, edx
    lea r10, [rel ${PRIVATE.patience}]
    syscall
    jmp init_wait
init_go:
    mov eax, ${SYS.close}
    mov edi, [rel ${PRIVATE.blockFile}]
    syscall
    mov eax, ${SYS.close}
    mov edi, [rel ${PRIVATE.objectFile}]
    syscall
    ; our LD_PRELOAD is the last; what the program's children get is the one before it, if there was one
    mov rdi, r12
init_variable:
    mov rsi, [rdi]
    test rsi, rsi
    je init_done
    lea rdx, [rel ${PRIVATE.preload}]
init_letter:
    mov al, byte [rdx]
    test al, al
    je init_remove
    cmp al, byte [rsi]
    jne init_next_variable
    add rsi, 1
    add rdx, 1
    jmp init_letter
init_remove:
    mov rax, [rdi+8]
    mov [rdi], rax
    add rdi, 8
    test rax, rax
    jne init_remove
    jmp init_done
init_next_variable:
    add rdi, 8
    jmp init_variable
init_done:
    lea rsp, [rbp-40]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret
init_no_thread:                             ; one that was executed runs on all the same
    mov [rbx+${BLOCK.startFailure}], eax
    mov r13d, 1
    cmp dword [rel ${PRIVATE.isSuccessor}], 0
    jne init_unmask
init_exit:
    mov eax, ${SYS.exit_group}
    mov edi, ${NO_BLOCK_STATUS}
    syscall
    ud2
init_no_library:
    mov dword [rbx+${BLOCK.startFailure}], ${NO_LIBRARY}
    jmp init_alone
init_no_block:                              ; zeros of our own, where nothing is asked: counts, which nobody makes without knowsThreads
    lea rbx, [rel ${PRIVATE.counts - AGENT.size}]
    mov [rel ${PRIVATE.zeros}], rbx
    lea rax, [rel ${PRIVATE.noBlock}]
    mov [rel ${PRIVATE.blockAt}], rax
init_alone:
    cmp dword [rel ${PRIVATE.isSuccessor}], 0
    je init_exit
    mov r13d, 1
    mov rax, ${RENDEZVOUS_ALONE}
    mov [rsp], rax
${changeMask(SIG_UNBLOCK, 'rsp')}
    jmp init_resolve
init_cannot_resolve:                        ; whoever calls a wrapper all the same is told that there is no such function
    lea rax, [rel missing]
    lea rdx, [rel ${PRIVATE.real}]
    mov ecx, ${wrapped.length}
init_next_missing:
    sub ecx, 1
    mov [rdx+rcx*8], rax
    jne init_next_missing
    cmp qword [rel ${PRIVATE.errnoLocation}], 0
    jne init_resolved
    lea rax, [rel no_errno]
    mov [rel ${PRIVATE.errnoLocation}], rax
    jmp init_resolved

; ---- the agent's thread: r9 the block
agent:
    mov r12d, [rel ${PRIVATE.blockFile}]    ; the program's descriptors are none of ours; what its successor needs is kept here
    mov [r9+${BLOCK.blockFile}], r12d
    mov r14d, r12d
    mov r15d, [rel ${PRIVATE.objectFile}]
    cmp r14d, r15d
    jb agent_close
    mov r14d, r15d
    mov r15d, r12d
agent_close:
    mov eax, ${SYS.close_range}
    lea edi, [r15+1]
    mov esi, -1
    xor edx, edx
    syscall
    mov eax, ${SYS.close_range}             ; an error where there is none between
    lea edi, [r14+1]
    lea esi, [r15-1]
    syscall
    test r14d, r14d
    je agent_open
    mov eax, ${SYS.close_range}
    xor edi, edi
    lea esi, [r14-1]
    syscall
agent_open:
    mov eax, ${SYS.open}
    lea rdi, [rel ${PRIVATE.memoryPath}]
    mov esi, ${O_RDWR | O_CLOEXEC}
    syscall
    mov [r9+${BLOCK.memoryFile}], eax
    test eax, eax
    js agent_unlock
    mov [rel ${PRIVATE.memoryFile}], eax
    ; a kernel may let it be opened, and not let it write text: this very byte over itself
    mov edi, eax
    lea rsi, [rel agent]
    mov edx, 1
    mov r10, rsi
    mov eax, ${SYS.pwrite64}
    syscall
    test eax, eax
    js agent_no_write
    jmp agent_ready
agent_no_write:
    mov [r9+${BLOCK.memoryWrite}], eax
    ; the other way: this text made writable, the byte read over itself from the block's file, and its rights given back
agent_unlock:
    mov al, byte [rel agent]
    mov byte [r9+${BLOCK.buffer}], al
    mov edx, ${PROT.read | PROT.write | PROT.exec}
    call agent_protect
    js agent_refused
    call seek_buffer
    lea rsi, [rel agent]
    mov edx, 1
    mov eax, ${SYS.read}
    syscall
    mov r13d, eax
    mov edx, ${PROT.read | PROT.exec}
    call agent_protect
    js agent_refused
    mov eax, r13d
    test eax, eax
    js agent_refused
    ; where the memory's file cannot be opened, it is read by writing it into the block's file
    mov eax, [r9+${BLOCK.memoryFile}]
    test eax, eax
    jns agent_unlocks
    call seek_buffer
    lea rsi, [rel agent]
    mov edx, 1
    mov eax, ${SYS.write}
    syscall
    test eax, eax
    js agent_refused
agent_unlocks:
    mov eax, 1
agent_refused:
    mov [r9+${BLOCK.unlocking}], eax
agent_ready:
    mov dword [r9+${BLOCK.ready}], 1
${agentThreadListing(
  [
    { action: MAKE_CHANGES, label: 'make_changes' },
    { action: ADOPT_HANDLERS, label: 'adopt_handlers' },
  ],
  'release_all',
  `
    mov ecx, [rbx+${BLOCK.linger}]
linger:
    sub ecx, 1
    js linger_over
    pause
    cmp eax, [rbx+${AGENT.command}]
    jne next
    cmp dword [rbx+${BLOCK.linger}], 0
    jne linger
linger_over:`,
)}

agent_protect:                              ; edx rights of all of this text: its mapping stays whole
    lea rdi, [rel 0]
    add rdi, ${TEXT}
    mov esi, ${OBJECT_DATA - TEXT}
    mov eax, ${SYS.mprotect}
    syscall
    test eax, eax
    ret
seek_buffer:                                ; edi becomes the block's file, at its buffer
    mov edi, r12d
    mov rsi, [rel ${PRIVATE.blockOffset}]
    add rsi, ${BLOCK.buffer}
    xor edx, edx
    mov eax, ${SYS.lseek}
    syscall
    ret

release_all:                                ; nobody will: the tracer has died
    mov eax, [rbx+${BLOCK.generation}]
    test eax, 1
    je release_done
    lock add dword [rbx+${BLOCK.generation}], 1
release_done:
    mov eax, ${SYS.futex}
    lea rdi, [rbx+${BLOCK.generation}]
    mov esi, ${FUTEX.wake}
    mov edx, ${EVERYBODY}
    syscall
    ret

make_changes:
    push r14
    mov r12, [rbx+${BLOCK.changes}]
    mov r13d, [rbx+${BLOCK.changeCount}]
    mov dword [rbx+${BLOCK.changed}], 0
    mov dword [rbx+${BLOCK.changeStatus}], 0
    lea r15, [rel ${PRIVATE.protocol}]
    sub rsp, ${lowered.frameSize}
    mov rbp, rsp
    mov [rbx+${BLOCK.changeStack}], rsp
    mov dword [rbx+${BLOCK.lockStatus}], 0
    mov rax, [rbx+${BLOCK.region}]
    mov [rbp+${slot(lowered, 'region')}], rax
    mov rax, [rbx+${BLOCK.regionLength}]
    mov [rbp+${slot(lowered, 'region_length')}], rax
    call ${begin}
    mov eax, [rbp+${slot(lowered, 'result')}]
    mov [rbx+${BLOCK.changeStatus}], eax
    test eax, eax
    jne no_changes
make_next_change:
    test r13, r13
    je made_changes
    mov rax, [r12+${CHANGE.address}]
    mov [rbp+${slot(lowered, 'ip')}], rax
    mov rax, [r12+${CHANGE.before}]
    mov [rbp+${slot(lowered, 'old_code')}], rax
    mov rax, [r12+${CHANGE.after}]
    mov [rbp+${slot(lowered, 'new_code')}], rax
    mov rax, [r12+${CHANGE.length}]
    mov [rbp+${slot(lowered, 'length')}], rax
    call ${protocol.patch}
    mov eax, [rbp+${slot(lowered, 'result')}]
    test eax, eax
    jne change_failed
    add dword [rbx+${BLOCK.changed}], 1
    add r12, ${CHANGE.size}
    sub r13, 1
    jmp make_next_change
change_failed:
    mov [rbx+${BLOCK.changeStatus}], eax
made_changes:
    call ${end}
no_changes:
    add rsp, ${lowered.frameSize}
    pop r14
    jmp served

; A handler that waits for a thread that stands still would never end, nor would the patcher's wait for it: it gives up when it is
; told to, when a count is left behind that only the next rendezvous takes back, or when nobody is there any more to tell it. A helper that cannot write lets the patcher have the processor.
${WHILE_WAITING}:
    push rax
    push rcx
${loadBlock('rax')}
    mov rcx, rsp
    sub rcx, rax
    cmp rcx, ${AGENT.size}
    jae helper_waits                        ; not on the agent's stack
    cmp dword [rax+${BLOCK.abandon}], 0
    jne give_up_change
    cmp dword [rax+${BLOCK.left}], 0
    jne give_up_change
    mov ecx, [rax+${AGENT.owner}]
    test ecx, ${FUTEX_OWNER_DIED}
    jne give_up_change
    pop rcx
    pop rax
    ret
helper_waits:
    push rdi
    push rsi
    push r11
    mov rdi, ${HELPER_PAUSE_NS}
    push rdi
    xor edi, edi
    push rdi
    mov rdi, rsp
    xor esi, esi
    mov eax, ${SYS.nanosleep}
    syscall
    add rsp, 16
    pop r11
    pop rsi
    pop rdi
    pop rcx
    pop rax
    ret
give_up_change:
${loadBlock('rbx')}
    mov rsp, [rbx+${BLOCK.changeStack}]
    mov rbp, rsp
    mov eax, ${EBUSY}
    jmp change_failed

; probe_kernel_write, of a whole span: rdi where, rsi code, rcx length. By the agent's thread, or by a handler that helps. Where text
; must be unlocked a handler does not write: it has no file of the block, and a plain store would crash where a handler has unmapped the
; text meanwhile, or where the patcher has given up and locked it. It waits for the patcher, as one does whose write fails.
write_text:
    push rbx
    push r12
    push r13
    push r14
    mov r12, rdi
    mov r13, rsi
    mov r14, rcx
${loadBlock('rbx')}
    mov rax, rsp
    sub rax, rbx
    cmp rax, ${AGENT.size}
    mov edi, [rel ${PRIVATE.memoryFile}]
    jb write_text_now                       ; on the agent's stack
    mov r8, [rsp+24]                        ; rbx of whom has called the protocol
    lea rcx, [r8${shimFrame}]
    cmp rcx, rbp
    jne write_text_help                     ; not the shim
    cmp qword [r8-${SHIM.isCounted}], 0
    jne write_text_help                     ; not on the way in
    call withhold_signal
${loadBlock('rbx')}
write_text_help:
    xor eax, eax
    cmp dword [rbx+${BLOCK.pid}], 0
    je write_text_end                       ; a child that a handler has forked: the change is not its own
    cmp dword [rbx+${BLOCK.unlocking}], 0
    jne write_text_cannot
    mov eax, ${SYS.open}
    lea rdi, [rel ${PRIVATE.memoryPath}]
    mov esi, ${O_RDWR | O_CLOEXEC}
    syscall
    test eax, eax
    js write_text_end                       ; no descriptor is left, or it is forbidden
    mov edi, eax
    call write_span
    push rax
    mov eax, ${SYS.close}
    syscall
    pop rax
    jmp write_text_end
write_text_now:
    cmp dword [rbx+${BLOCK.unlocking}], 0
    je write_text_file
    call read_span
    jmp write_text_end
write_text_file:
    call write_span
    jmp write_text_end
write_text_cannot:
    mov eax, ${EFAULT}
write_text_end:
    pop r14
    pop r13
    pop r12
    pop rbx
    ret
write_span:                                 ; edi the memory file
    mov rsi, r13
    mov rdx, r14
    mov r10, r12
    mov eax, ${SYS.pwrite64}
    syscall
    cmp rax, r14
    jne write_span_failed
    xor eax, eax
    ret
write_span_failed:
    mov eax, ${EFAULT}
    ret

read_span:                                  ; the same into unlocked text: the kernel copies, from the block's file, and a bad
    mov edi, [rbx+${BLOCK.blockFile}]       ; address is an error here as well
    mov rsi, r13
    sub rsi, rbx
    add rsi, [rel ${PRIVATE.blockOffset}]
    xor edx, edx
    mov eax, ${SYS.lseek}
    syscall
    mov rsi, r12
    mov rdx, r14
    mov eax, ${SYS.read}
    syscall
    cmp rax, r14
    jne write_span_failed
    xor eax, eax
    ret

; By the agent's thread only: rdi, rcx the text. Nobody else changes rights: who did would take them from a writer
unlock_text:
${loadBlock('r8')}
    cmp dword [r8+${BLOCK.unlocking}], 0
    je unlock_text_done                     ; it can be written as it is
    mov rsi, rcx
    mov edx, [r8+${BLOCK.unlockedRights}]
    mov eax, ${SYS.mprotect}
    syscall
    mov [r8+${BLOCK.unlockStatus}], eax
    test eax, eax
    jne write_span_failed
unlock_text_done:
    xor eax, eax
    ret
lock_text:
${loadBlock('r8')}
    cmp dword [r8+${BLOCK.unlocking}], 0
    je unlock_text_done
    mov rsi, rcx
    mov edx, [r8+${BLOCK.rights}]
    mov eax, ${SYS.mprotect}
    syscall
    mov [r8+${BLOCK.lockStatus}], eax
    ret

compare_text:                               ; rdi where, rsi code, rcx length; by the agent's thread only
    push rsi
${loadBlock('r8')}
    mov r10, rdi
    mov rdx, rcx
    mov edi, [r8+${BLOCK.memoryFile}]
    test edi, edi
    js compare_text_copy
    lea rsi, [r8+${BLOCK.buffer + BUFFER_SIZE - SCRATCH}]
    mov eax, ${SYS.pread64}
    syscall
    jmp compare_text_read
compare_text_copy:
    mov edi, [r8+${BLOCK.blockFile}]
    mov rsi, [rel ${PRIVATE.blockOffset}]
    add rsi, ${BLOCK.buffer + BUFFER_SIZE - SCRATCH}
    mov r9, rdx
    xor edx, edx
    mov eax, ${SYS.lseek}
    syscall
    mov rsi, r10
    mov rdx, r9
    mov eax, ${SYS.write}
    syscall
compare_text_read:
    lea rsi, [r8+${BLOCK.buffer + BUFFER_SIZE - SCRATCH}]
    pop rdi
    cmp rax, rdx
    jne compare_text_unreadable
compare_text_byte:
    sub rdx, 1
    js compare_text_same
    mov al, byte [rdi+rdx]
    cmp al, byte [rsi+rdx]
    je compare_text_byte
    mov eax, 1
    ret
compare_text_same:
    xor eax, eax
    ret
compare_text_unreadable:
    mov eax, ${EFAULT}
    ret
${SYNC_CORE}

; A call that fails with EINTR because of us, and of nothing else, is made once more. r12 struct ucontext
restart_call:
    cmp qword [r12+${UCONTEXT_REGISTERS.rax}], ${EINTR}
    jne restart_not
    mov rdx, [r12+${UCONTEXT_REGISTERS.rip}]
    cmp rdx, [r12+${UCONTEXT_REGISTERS.rcx}]           ; as syscall leaves it
    jne restart_not
    lea rax, [rel syscall.made]
    cmp rdx, rax
    je restart_own
    mov eax, edx
    and eax, 4095
    cmp eax, ${FARTHEST_NUMBER}
    jb restart_not                          ; not beyond the page
    cmp word [rdx-2], ${SYSCALL}
    jne restart_not
    xor eax, eax
    cmp word [rdx-4], ${XOR_EAX_EAX}
    je restart_known
    mov rcx, rdx
restart_look:                               ; for mov eax, number, with some other moves behind it perhaps
    sub rcx, 1
    mov rax, rdx
    sub rax, rcx
    cmp rax, ${FARTHEST_NUMBER}
    ja restart_not
    cmp byte [rcx-6], ${MOV_EAX}
    jne restart_look
    mov eax, [rcx-5]
${RESTARTED.map((n) => `    cmp eax, ${n}\n    je restart_now`).join('\n')}
    jmp restart_look
restart_own:                                ; our own syscall function has the number on the stack
    mov rax, [r12+${UCONTEXT_REGISTERS.rsp}]
    mov rax, [rax]
restart_known:
${RESTARTED.map((n) => `    cmp eax, ${n}\n    je restart_now`).join('\n')}
restart_not:
    ret
restart_now:
    mov [r12+${UCONTEXT_REGISTERS.rax}], rax
    sub rdx, 2
    mov [r12+${UCONTEXT_REGISTERS.rip}], rdx
    ret

; A jump leaves handlers, perhaps, and nobody says how many: from here on the thread is one as any other, which can be called to a
; rendezvous and need not be waited for. Should it be in a handler all the same, nothing is lost: it is called as well. On a thread
; that stands its handlers are counted on, as code may be changed under them.
leave_handlers:
    push r15
    sub rsp, 16
    call thread_local
    test rax, rax
    je leave_done
    mov ecx, [rax+${THREAD_LOCAL.nested}]
    or ecx, [rax+${THREAD_LOCAL.masked}]
    or ecx, [rax+${THREAD_LOCAL.standing}]  ; by a handler without a shim
    je leave_done
    mov dword [rax+${THREAD_LOCAL.masked}], 0
    mov r10, ${RENDEZVOUS_ALONE}
    or r10, [rax+${THREAD_LOCAL.withheld}]  ; of handlers that still waited
    mov qword [rax+${THREAD_LOCAL.withheld}], 0
    mov [rsp], r10
${changeMask(SIG_UNBLOCK, 'rsp')}
    lea r15, [rel ${PRIVATE.protocol}]
leave_next:
    call thread_local
    mov ecx, [rax+${THREAD_LOCAL.standing}]
    test ecx, ecx
    je leave_one
${loadBlock('rdx')}
    cmp dword [rdx+${BLOCK.generation}], ecx
    je leave_done
    mov dword [rax+${THREAD_LOCAL.standing}], 0
leave_one:
    mov ecx, [rax+${THREAD_LOCAL.nested}]
    test ecx, ecx
    je leave_done
    call count_down
    call ftrace_nmi_exit
    jmp leave_next
leave_done:
    add rsp, 16
    pop r15
    ret

; A handler that helps, or has to wait: its signal waits meanwhile, as one does whose thread has no processor. Else handlers that may
; interrupt themselves (SA_NODEFER) would pile up on the stack, one in each system call that takes longer than it does until the next
; signal comes. r8 the shim's frame; changes what lowered code changes, and rbx
withhold_signal:
    mov rbx, r8
    call count_handler                      ; a jump of a handler on top, from now on, takes this one's count back
    sub rsp, 16
    mov rcx, [rbx-${SHIM.signal}]
    mov eax, 1
withhold_shift:
    sub ecx, 1
    je withhold_block
    add rax, rax
    jmp withhold_shift
withhold_block:
    mov [rsp], rax
${changeMask(SIG_BLOCK, 'rsp', 'rsp+8')}
    test eax, eax
    jne withhold_done
    mov rax, [rsp+8]
    and rax, [rsp]
    jne withhold_done                       ; the kernel has blocked it, as it does without that flag
    mov rdx, [rsp]
    mov [rbx-${SHIM.withheld}], rdx
    call thread_local
    test rax, rax
    je withhold_done                        ; of a thread without words only the handler itself gives it back
    or [rax+${THREAD_LOCAL.withheld}], rdx
withhold_done:
    add rsp, 16
    ret

; A handler begins: what waited for it comes again, and what waits for one below it, which would go on if this one were not there.
give_signals_back:                          ; rbx the shim's frame
    mov rdx, [rbx-${SHIM.withheld}]
    call thread_local
    test rax, rax
    je give_back
    mov rcx, rdx
    not rcx
    or rdx, [rax+${THREAD_LOCAL.withheld}]
    and [rax+${THREAD_LOCAL.withheld}], rcx
give_back:
    test rdx, rdx
    je give_nothing_back
    push rdx
${changeMask(SIG_UNBLOCK, 'rsp')}
    pop rdx
give_nothing_back:
    ret

; A handler that the protocol has counted becomes one of the thread's own. rbx the shim's frame
count_handler:
    mov qword [rbx-${SHIM.isCounted}], 1
    mov qword [rbx-${SHIM.held}], 0
    call thread_local
    test rax, rax
    je count_handler_done
    mov ecx, [rax+${THREAD_LOCAL.nested}]
    mov [rbx-${SHIM.held}], rcx
    mov dword [rax+${THREAD_LOCAL.masked}], 1
    call count_up
    add dword [rax+${THREAD_LOCAL.begun}], 1
count_handler_done:
    ret

; The thread's own counts, rax its words: up when it stands in the protocol's word already, down while it still does. So what is found
; of a thread that has ended is never more than it has left there. They change rcx, rdx, r10 and r11
count_up:
    call own_count
    test rcx, rcx
    je count_up_words
    add dword [rcx], 1
count_up_words:
    add dword [rax+${THREAD_LOCAL.nested}], 1
    ret
count_down:
    sub dword [rax+${THREAD_LOCAL.nested}], 1
    call own_count
    test rcx, rcx
    je count_down_done
    sub dword [rcx], 1
count_down_done:
    ret

own_count:                                  ; rcx: where they stand outside of the thread, or 0
    mov rcx, [rax+${THREAD_LOCAL.ownCount}]
    test rcx, rcx
    je own_count_look
    cmp rcx, ${NOWHERE}
    jne own_count_done
    xor ecx, ecx
own_count_done:
    ret
own_count_look:
    cmp dword [rel ${PRIVATE.knowsThreads}], 0
    je own_count_none
    push rax
    rdfsbase rdx
    mov edx, [rdx+${GLIBC_TID_OFFSET}]
    test edx, edx
    je own_count_pop
    mov r10d, edx
    mov ecx, ${OWN_COUNT_PROBES}
own_count_next:
    and r10d, ${OWN_COUNTS_MAX - 1}
    lea r11, [rel ${PRIVATE.counts}]
    lea r11, [r11+r10*${OWN_COUNT.size}]
    xor eax, eax
    lock cmpxchg qword [r11], rdx
    je own_count_got
    add r10d, 1
    sub ecx, 1
    jne own_count_next
own_count_pop:
    pop rax
own_count_none:
    mov qword [rax+${THREAD_LOCAL.ownCount}], ${NOWHERE}
    xor ecx, ecx
    ret
own_count_got:
    pop rax
    lea rcx, [r11+${OWN_COUNT.count}]
    mov [rax+${THREAD_LOCAL.ownCount}], rcx
    ret

thread_local:                               ; rax: the thread's own words; 0 where it has no thread block
    rdfsbase rax
    test rax, rax
    je thread_local_none
    add rax, [rel ${PRIVATE.threadLocal}]
thread_local_none:
    ret

    nop                                     ; unwinders look up the instruction before, and must find nothing
restorer:
    movq rax, ${SYS.rt_sigreturn}           ; these bytes tell unwinders that a signal frame is here
    syscall

missing:
    call qword [rel ${PRIVATE.errnoLocation}]
    mov dword [rax], ${ENOSYS}
    mov rax, -1
    ret

no_errno:
    lea rax, [rel ${PRIVATE.noErrno}]
    ret

; An exception, or the end of the thread, leaves a handler through the shim: as with a jump. edi version, esi phase
shim_is_left:
    test esi, ${UA_CLEANUP_PHASE}
    je shim_goes_on
    call leave_handlers
shim_goes_on:
    mov eax, ${URC_CONTINUE_UNWIND}
    ret

; ---- from here on: push rbp; mov rbp, rsp
shim:                                       ; eax number of the handler; rdi, rsi, rdx its arguments
    push rbp
    mov rbp, rsp
    push r15
    push rbx
    sub rsp, ${SHIM.room + lowered.frameSize - 16}
    mov [rbp-${SHIM.signal}], rdi
    mov [rbp-${SHIM.info}], rsi
    mov [rbp-${SHIM.context}], rdx
    mov [rbp-${SHIM.handler}], rax
    mov qword [rbp-${SHIM.isCounted}], 0
    mov qword [rbp-${SHIM.withheld}], 0
    mov rbx, rbp
    lea rbp, [rbx${shimFrame}]
    lea r15, [rel ${PRIVATE.protocol}]
    call ${protocol.nmi}
    mov rbp, rbx
    lea rsp, [rbp-16]
    pop rbx
    pop r15
    pop rbp
    ret

traced_lockdep_off:
    ret

traced_handlers:                            ; rbx the shim's frame
    cmp qword [rbx-${SHIM.isCounted}], 0
    jne handler_begin
    call count_handler
handler_begin:
    call give_signals_back
    mov rbp, rbx
    mov rdi, [rbp-${SHIM.signal}]
    mov rsi, [rbp-${SHIM.info}]
    mov rdx, [rbp-${SHIM.context}]
    mov rcx, [rbp-${SHIM.handler}]
    lea rax, [rel ${PRIVATE.handlers}]
    mov rcx, [rax+rcx*8]
    xor eax, eax
    call rcx
    lea rbp, [rbx${shimFrame}]
    cmp qword [rbx-${SHIM.held}], 0
    jne handler_return                      ; the one below looks, and is counted until then
    call watch_actions
handler_return:
    call thread_local
    test rax, rax
    je handler_end
    mov ecx, [rax+${THREAD_LOCAL.nested}]
    sub rcx, [rbx-${SHIM.held}]
    sub rcx, 1
    js handler_released
    je handler_last
    call count_down                         ; of a handler on top of it that has not returned, and never will
    call ftrace_nmi_exit
    jmp handler_return
handler_released:                           ; by a jump within it: the count that is about to be taken back is made again
    call ftrace_nmi_enter
    ret
handler_last:
    call count_down                         ; before it is taken out of the count: too high a count harms nobody
    cmp dword [rax+${THREAD_LOCAL.nested}], 0
    jne handler_end
    mov dword [rax+${THREAD_LOCAL.masked}], 0
handler_end:
    ret

unwind_wrappers:
${wrappersListing()}
${executingListing(realSlot)}
; ---- the rendezvous: rdx struct ucontext. An exception may leave a handler that runs while it waits, and go through it
rendezvous:
    push rbp
    mov rbp, rsp
    push rbx
    push r12
    push r13
    push r14
    push r15
    sub rsp, ${STAND.size + lowered.frameSize}
    mov r12, rdx
${loadBlock('rbx')}
    mov eax, ${SYS.getpid}
    syscall
    cmp eax, [rel ${PRIVATE.owner}]
    jne rendezvous_over                     ; a forked child
    mov r13d, [rbx+${BLOCK.generation}]
    test r13d, 1
    je rendezvous_over
    mov eax, 1
    lock xadd dword [rbx+${BLOCK.taken}], eax
    and eax, ${PLACES_MAX - 1}
    shl rax, ${Math.log2(PLACE.size)}
    lea r14, [rbx+rax+${BLOCK.places}]
    mov rax, [r12+${UCONTEXT_REGISTERS.rip}]
    mov [r14+${PLACE.rip}], rax
    mov rax, [r12+${UCONTEXT_REGISTERS.rsp}]
    mov [r14+${PLACE.rsp}], rax
    mov qword [r14+${PLACE.isMoved}], 0
    mov qword [r14+${PLACE.hasLeft}], 0
    call thread_local
    xor ecx, ecx
    xor edx, edx
    test rax, rax
    je rendezvous_alone
    mov ecx, [rax+${THREAD_LOCAL.nested}]
    mov edx, [rax+${THREAD_LOCAL.begun}]
    mov dword [rax+${THREAD_LOCAL.standing}], r13d
rendezvous_alone:
    mov [r14+${PLACE.nested}], rcx
    mov [rsp+${STAND.toLeave}], rcx
    mov [rsp+${STAND.toEnter}], rcx
    mov [rsp+${STAND.begun}], rdx
    rdfsbase rax
    mov [r14+${PLACE.fsBase}], rax
    lea r15, [rel ${PRIVATE.protocol}]
rendezvous_uncount:                         ; a thread that stands here is in no handler, whatever it has counted
    sub qword [rsp+${STAND.toLeave}], 1
    js rendezvous_uncounted
    call thread_local
    call count_down
    lea rbp, [rsp+${STAND.size}]
    call ftrace_nmi_exit
    lea rbp, [rsp+${standFrame}]
    jmp rendezvous_uncount
rendezvous_uncounted:
    mov eax, ${SYS.gettid}
    syscall
    mov [r14+${PLACE.tid}], rax
rendezvous_wait:
    cmp dword [rbx+${BLOCK.generation}], r13d
    jne rendezvous_count
    mov eax, ${SYS.futex}
    lea rdi, [rbx+${BLOCK.generation}]
    mov esi, ${FUTEX.wait}
    mov edx, r13d
    xor r10d, r10d
    syscall
    jmp rendezvous_wait
rendezvous_count:
    sub qword [rsp+${STAND.toEnter}], 1
    js rendezvous_counted
    lea rbp, [rsp+${STAND.size}]
    call ftrace_nmi_enter
    lea rbp, [rsp+${standFrame}]
    call thread_local
    call count_up
    jmp rendezvous_count
rendezvous_counted:
    mov qword [rsp+${STAND.mask}], ${ALL_SIGNALS} ; until the way back, so that what is found now stays true
${changeMask(SIG_SETMASK, `rsp+${STAND.mask}`)}
    cmp qword [r14+${PLACE.isMoved}], 0
    je rendezvous_unmoved
    mov rax, [r14+${PLACE.rip}]
    mov [r12+${UCONTEXT_REGISTERS.rip}], rax
    jmp rendezvous_leave
rendezvous_unmoved:
    call thread_local
    test rax, rax
    je rendezvous_leave
    mov edx, [rax+${THREAD_LOCAL.begun}]
    cmp rdx, [rsp+${STAND.begun}]
    jne rendezvous_leave                    ; a handler has run: where the call fails with EINTR, that is the truth
    call restart_call
rendezvous_leave:
    mov eax, ${SYS.getpid}
    syscall
    cmp eax, [rel ${PRIVATE.owner}]
    jne rendezvous_over                     ; forked meanwhile, by a handler
    call thread_local
    test rax, rax
    je rendezvous_left
    mov dword [rax+${THREAD_LOCAL.standing}], 0
rendezvous_left:
    mov qword [r14+${PLACE.hasLeft}], 1
rendezvous_over:
    add rsp, ${STAND.size + lowered.frameSize}
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret
unwind_end:

${actionsListing()}
; ---- handlers and stubs: rax a handler -> its stub, and back. Only rax, rcx, r10 and r11 change.
stub_of:
    cmp rax, 4095                           ; SIG_DFL, SIG_IGN, SIG_HOLD
    jbe stub_same
    cmp rax, -4096                          ; SIG_ERR
    jae stub_same
    lea r10, [rel ${STUBS}]
    mov rcx, rax
    sub rcx, r10
    cmp rcx, ${HANDLERS_MAX * STUB_SIZE}
    jb stub_same
    mov r11, rax
    lea r10, [rel ${PRIVATE.handlers}]
    xor ecx, ecx
stub_look:
    mov rax, [r10+rcx*8]
    cmp rax, r11
    je stub_found
    test rax, rax
    jne stub_other
    lock cmpxchg qword [r10+rcx*8], r11     ; two threads may want the same place
    je stub_found
    cmp rax, r11
    je stub_found
stub_other:
    add ecx, 1
    cmp ecx, ${HANDLERS_MAX}
    jb stub_look
    mov rax, r11                            ; no place is left: it is found without a shim when code is to change
    ret
stub_found:
    shl rcx, ${Math.log2(STUB_SIZE)}
    lea rax, [rel ${STUBS}]
    add rax, rcx
stub_same:
    ret

handler_of:
    lea r10, [rel ${STUBS}]
    mov rcx, rax
    sub rcx, r10
    cmp rcx, ${HANDLERS_MAX * STUB_SIZE}
    jae stub_same
    shr rcx, ${Math.log2(STUB_SIZE)}
    lea r10, [rel ${PRIVATE.handlers}]
    mov rax, [r10+rcx*8]
    ret
${lowered.listing}
`;
}

/** Bytes at the end of the buffer in which a span is compared. */
export const SCRATCH = 16384;

function slot(lowered: LoweredProtocol, name: string): number {
  return lowered.slots.get(name) ?? 0;
}
