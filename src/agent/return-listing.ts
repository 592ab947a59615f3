// How the agent's thread puts swapped return addresses back at the end of a session, with nobody held; by itself if the tracer has died.
// Those that walk stacks must find true ones before the unwinders' hooks may go.
//
// A return address is put back by one `lock cmpxchg`, with its thread running. That thread returns before it, through the trampoline and
// the recorder, which finds the entry as ever; or after it, straight to its caller. What is not the trampoline any more, as the frame was
// left by a jump, stays as it is. Recording is off, and each recorder that swaps looks for that after it has marked its lane busy: so of
// a lane that is not busy all swaps can be seen. An entry in whose slot the true address stands is one that is about to be swapped, or has
// just been returned through: its lane is looked at again later.
//
// A stack may be unmapped by then (its thread left the frame by a jump, and has ended). Reading it must not harm the program, whose
// handlers for signals are its own affair. So all this is done by a process of its own that shares the memory (CLONE_VM) but no
// handlers: it goes on behind whatever cannot be read. It sends no signal when it ends, and lives for less than a millisecond, unless thousands of
// calls are open in coroutines.
import {
  ACTION_WORDS,
  PAGE,
  SA_RESTORER,
  SA_SIGINFO,
  SIGNAL_SET_BYTES,
  SIG_UNBLOCK,
  SYS,
  UCONTEXT_REGISTERS,
  WAIT_ALL,
} from '../linux/index.js';
import type { PlannedCall } from '../target/index.js';
import { AGENT, CONTROL, DATA, LANE, SHADOW } from './layout.js';

/**
 * include/uapi/linux/sched.h: VM | FILES | SYSVSEM; no signal at its end. Not FS: an execve(2) of a set-user-ID program would lose its
 * privileges meanwhile.
 */
const MENDER_FLAGS = 0x100 | 0x400 | 0x40000;

/** include/uapi/asm-generic/signal.h */
const SIGBUS = 7;
const SIGSEGV = 11;
const FAULTS = (1 << (SIGBUS - 1)) | (1 << (SIGSEGV - 1));

/** What the mender needs beyond what the thread may do anyway. */
export const MENDER_CALLS: readonly PlannedCall[] = [
  { name: 'clone of a process', number: SYS.clone, arguments: [MENDER_FLAGS, PAGE, 0, 0, 0] },
  { name: 'wait4', number: SYS.wait4, arguments: [PAGE, 0, WAIT_ALL, 0] },
  { name: 'rt_sigaction', number: SYS.rt_sigaction, arguments: [SIGSEGV, PAGE, 0, SIGNAL_SET_BYTES] },
  { name: 'rt_sigaction', number: SYS.rt_sigaction, arguments: [SIGBUS, PAGE, 0, SIGNAL_SET_BYTES] },
  { name: 'rt_sigprocmask', number: SYS.rt_sigprocmask, arguments: [SIG_UNBLOCK, PAGE, 0, SIGNAL_SET_BYTES] },
  { name: 'rt_sigreturn', number: SYS.rt_sigreturn, arguments: [] },
];

/** The mender has the page of calls for its stack: the thread makes none meanwhile. */
const MENDER_STACK = AGENT.size;

/** Entries that the mender compares with others, of which there may be as many: some tens of milliseconds. */
const COMPARED_MAX = 1 << 25;

const nextLane = (label: string): string => `
    add r12, ${LANE.size}
    jmp ${label}`;

/**
 * Goes through the entries of all lanes whose slot is rdi: rsi the lane, rdx the entry. `lane` and `entry` may jump to `_next` and `_on`.
 * Where so many calls are open that nobody can compare them all, the lane waits: they end one by one.
 */
const everyEntry = (p: string, atEnd: string, lane: string, entry: string): string => `
    mov rsi, [rbx+${AGENT.lanes}]
${p}_lane:
    cmp rsi, r15
    jae ${atEnd}${lane}
    mov rdx, [rsi+${LANE.shadow}]
${p}:
    cmp rdx, [rsi+${LANE.shadowBase}]
    jbe ${p}_next
    sub r10, 1
    jb mender_waits
    cmp [rdx+${SHADOW.slot}], rdi
    jne ${p}_on${entry}
${p}_on:
    sub rdx, ${SHADOW.size}
    jmp ${p}
${p}_next:
    add rsi, ${LANE.size}
    jmp ${p}_lane`;

/**
 * `put_returns_back`: rbx the agent's pages, kept, as is r14 -> eax how many lanes have a return address that is swapped, or may yet be:
 * 0 says that there are none. Wants the address of the first lane in the page.
 */
export const RETURNS_LISTING = `
put_returns_back:
    mov eax, -1
    mov rdi, [rbx+${AGENT.control}]
    test rdi, rdi
    je mender_over
    mov qword [rdi+${CONTROL.enabled}], 0
    cmp qword [rbx+${AGENT.lanes}], 0
    je mender_over
    mov r15, [rdi+${PAGE + DATA.lanesEnd}]   ; data lies behind the control page
    mov r12, [rbx+${AGENT.lanes}]
    xor eax, eax
open_lane:                           ; is there anything at all? these are our own pages
    cmp r12, r15
    jae open_counted
    cmp qword [r12+${LANE.busy}], 0
    jne open_one
    mov r13, [r12+${LANE.shadow}]
open_entry:
    cmp r13, [r12+${LANE.shadowBase}]
    jbe open_next
    cmp qword [r13+${SHADOW.slot}], 0
    je open_on
    cmp dword [r13+${SHADOW.parked}], 0
    je open_one
open_on:
    sub r13, ${SHADOW.size}
    jmp open_entry
open_one:
    add eax, 1
open_next:${nextLane('open_lane')}
open_counted:
    test eax, eax
    je mender_over
    cmp dword [rbx+${AGENT.mayMend}], 0
    je mender_over                   ; calls end by themselves, or do not
    mov dword [rbx+${AGENT.swapped}], -1
    mov edi, ${MENDER_FLAGS}
    lea rsi, [rbx+${MENDER_STACK}]
    xor edx, edx
    xor r10d, r10d
    xor r8d, r8d
    mov eax, ${SYS.clone}
    syscall
    test rax, rax
    je mender
    js mender_failed
    mov rdi, rax
    xor esi, esi
    mov edx, ${WAIT_ALL}
    xor r10d, r10d
    mov eax, ${SYS.wait4}
    syscall
    mov eax, [rbx+${AGENT.swapped}]
mender_over:
    ret
mender_failed:
    mov eax, -1
    ret

mender:
    sub rsp, ${ACTION_WORDS * 8}
    lea rax, [rel mender_fault]
    mov [rsp], rax
    mov qword [rsp+8], ${SA_SIGINFO | SA_RESTORER}
    lea rax, [rel mender_return]
    mov [rsp+16], rax
    mov qword [rsp+24], 0
    mov edi, ${SIGSEGV}
    call mender_handle
    mov edi, ${SIGBUS}
    call mender_handle
    mov qword [rsp], ${FAULTS}
    mov edi, ${SIG_UNBLOCK}
    mov rsi, rsp
    xor edx, edx
    mov r10d, ${SIGNAL_SET_BYTES}
    mov eax, ${SYS.rt_sigprocmask}
    syscall
    test rax, rax
    js mender_end
    mov r12, [rbx+${AGENT.lanes}]    ; r15: behind the last
    xor r14d, r14d                   ; lanes that wait
    mov r10, ${COMPARED_MAX}         ; entries that may yet be compared with others
mender_lane:
    cmp r12, r15
    jae mender_done
    xor r11d, r11d                   ; 1: the lane's thread is no more
    lea rbp, [rel mender_ended]      ; where to go on should something not be there
    cmp qword [r12+${LANE.busy}], 0
    jne mender_look
    mov r13, [r12+${LANE.shadow}]
    cmp r13, [r12+${LANE.shadowBase}]
    jbe mender_next
mender_look:
    mov rax, [r12+${LANE.tidPointer}]
    mov eax, [rax]
    cmp eax, [r12+${LANE.tid}]
    jne mender_ended
    cmp qword [r12+${LANE.busy}], 0
    jne mender_waits
    jmp mender_entries
mender_ended:
    mov r11d, 1
mender_entries:                      ; the newest is looked for after the mark: an entry that was in the making is seen
    mov r13, [r12+${LANE.shadow}]
    lea rbp, [rel mender_entry_next]
mender_entry:                        ; newest first: of a chain of tail calls the newest stands in the slot
    cmp r13, [r12+${LANE.shadowBase}]
    jbe mender_next
    mov rdi, [r13+${SHADOW.slot}]
    test rdi, rdi
    je mender_entry_next
    cmp dword [r13+${SHADOW.parked}], 0
    jne mender_entry_next
    mov rax, rdi
    sub rax, [r12+${LANE.stackLow}]
    cmp rax, [r12+${LANE.stackSize}]
    jae mender_elsewhere
    test r11d, r11d                  ; on the stack of a thread that is no more: nobody returns
    jne mender_entry_next
mender_put_back:
    mov rax, [r13+${SHADOW.trampoline}]
    mov rcx, [r13+${SHADOW.returnAddress}]
    lock cmpxchg [rdi], rcx
    je mender_put
    cmp rax, rcx
    jne mender_entry_next
    test r11d, r11d
    jne mender_entry_next
    ; was that us, for another entry of the same call?${everyEntry(
      'mender_equal',
      'mender_waits',
      '',
      `
    cmp dword [rdx+${SHADOW.parked}], 0
    je mender_equal_on
    cmp [rdx+${SHADOW.returnAddress}], rcx
    je mender_put`,
    )}
mender_elsewhere:                    ; a coroutine's perhaps: does another lane say something else of it? Of what is over nobody is asked
    mov rax, [r13+${SHADOW.trampoline}]
    cmp [rdi], rax
    jne mender_put_back${everyEntry(
      'mender_other',
      'mender_put_back',
      `
    cmp rsi, r12
    je mender_other_next`,
      `
    cmp dword [rdx+${SHADOW.parked}], 0
    jne mender_other_on
    mov rax, [rdx+${SHADOW.trampoline}]
    cmp rax, [r13+${SHADOW.trampoline}]
    jne mender_other_on
    mov rcx, [rdx+${SHADOW.returnAddress}]
    cmp rcx, [r13+${SHADOW.returnAddress}]
    je mender_other_on
    cmp rax, [rdi]                   ; a stack that serves again: until that call returns nobody can tell
    je mender_waits`,
    )}
mender_put:
    mov dword [r13+${SHADOW.parked}], 1
mender_entry_next:
    sub r13, ${SHADOW.size}
    jmp mender_entry
mender_waits:
    add r14d, 1
mender_next:${nextLane('mender_lane')}
mender_done:
    mov [rbx+${AGENT.swapped}], r14d
mender_end:
    xor edi, edi
    mov eax, ${SYS.exit}
    syscall
    ud2
mender_handle:                       ; edi: a signal; the action is above the return address
    lea rsi, [rsp+8]
    xor edx, edx
    mov r10d, ${SIGNAL_SET_BYTES}
    mov eax, ${SYS.rt_sigaction}
    syscall
    test rax, rax
    js mender_end
    ret
mender_fault:                        ; rdx: struct ucontext
    mov rax, [rdx+${UCONTEXT_REGISTERS.rbp}]
    mov [rdx+${UCONTEXT_REGISTERS.rip}], rax
    ret
mender_return:
    mov eax, ${SYS.rt_sigreturn}
    syscall
    ud2
`;
