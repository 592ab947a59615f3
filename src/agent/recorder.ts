// The recorder: what a traced function's head calls. Emitted once per code region.
//
// The head of function i (16 bytes, stubs.ts):        its site, the first bytes of the function:
//
//     +0   call entry                                     jmp head
//     +5   call body      ; pushes the trampoline
//     +10  jmp exit       ; the trampoline: where the function returns to
//
// entry, step by step:
//   1. save every register it uses, and the flags: gcc lets callers keep values in registers that the ABI calls clobbered
//      when it knows that a local callee leaves them alone (-fipa-ra), so nothing at all may change
//   2. stop if recording is off: the control page says so, and reads as zeros in a forked child. Only forget what a jump has left
//      behind of this thread's, which the end of the session would wait for
//   3. find the thread's lane: a cache indexed by a hash of the thread pointer, then the owner's thread id compared, for a
//      new thread may have got the thread block of one that has ended. Only then the time stamp is read: what follows it
//      need not wait for it, what comes before would
//   4. mark the lane busy; a signal handler that comes now and is traced finds the mark and disturbs nothing. Look once more
//      whether recording is off: who turns it off and then sees no mark knows that nobody will swap a return address
//   5. drop shadow entries of calls that are over without having returned (longjmp, exceptions)
//   6. swap the return address only if the caller is code in a file: those that walk stacks by return addresses (JITs)
//      must find their own
//   7. see that the ring has room for this record and for the ends of all open calls; else count the call as lost
//   8. reserve a record by one xadd (one instruction: no signal can come between), fill it, publish it by its `what`
//   9. push {slot, return address} onto the shadow stack, again reserved by one xadd
//  10. return to the head with the return slot popped (ret 8), so that its `call body` puts the trampoline exactly where
//      the return address was; each call is matched by a return, which keeps the processor's return predictor right
//
// exit: takes the slot back, finds the shadow entry (the newest, if nothing odd happened), puts the true return address
// back into the slot, records, and returns to it.
//
// There is no lock, no allocation and no system call on these paths; a thread's very first event asks for its id.
import { SYS } from '../linux/index.js';
import {
  KIND_ENTRY,
  KIND_EXIT,
  KIND_LEAF,
  KIND_LOST,
  KIND_UNWOUND,
  RECORD_BYTES,
  RECORD_SLOT_OFFSET,
  RECORD_TSC_OFFSET,
  RECORD_WHAT_OFFSET,
} from '../recording/index.js';
import {
  CACHE_BITS,
  CONTROL,
  DATA,
  HASH_MULTIPLIER,
  HASH_SHIFT,
  HEADER,
  LANE,
  LANE_STATE,
  NO_THREAD_POINTER,
  SHADOW,
  type AgentGeometry,
} from './layout.js';

/** Where the recorder of one code region finds things. Absolute addresses in the target. */
export interface RecorderPlaces {
  readonly control: bigint;
  readonly data: bigint;
  /** Address of the region's first head, aligned to 16. */
  readonly heads: bigint;
  /** Function index of the first head. */
  readonly firstIndex: number;
}

/** Bytes of a head; its number in the region is (its address - heads) / HEAD_SIZE. */
export const HEAD_SIZE = 16;
/** Offsets in a head: the return address of its first call, and the trampoline. */
export const HEAD_AFTER_ENTRY = 5;
export const HEAD_TRAMPOLINE = 10;

/**
 * How the fast paths learn the thread pointer. `memory`: from its first word, which the ABI says holds its own address (ELF
 * TLS, x86-64); it takes a tenth of the time, but a thread without a thread pointer would fault. `register`: by rdfsbase,
 * which is always right; where a lane is found or claimed, this is done anyway.
 */
export type ThreadPointerSource = 'memory' | 'register';

/** Of equal length, so that one recorder can be put in place of the other. */
const THREAD_POINTER_READS: Readonly<Record<ThreadPointerSource, string>> = {
  memory: 'mov rsi, fs:[0]',
  register: `rdfsbase rsi
    nop
    nop
    nop
    nop`,
};

/** Labels of the places where the fast paths learn the thread pointer begin so. */
export const THREAD_POINTER_LABEL = 'thread_pointer_';
/** `rdfsbase rsi` and four `nop`: to be put there instead of the read from memory. */
export const THREAD_POINTER_BY_REGISTER = Uint8Array.of(0xf3, 0x48, 0x0f, 0xae, 0xc6, 0x90, 0x90, 0x90, 0x90);

/** Labels at which heads and hooks enter the recorder. */
export const RECORDER_ENTRIES = ['entry', 'entry_frame', 'leaf', 'exit', 'park'] as const;
export type RecorderEntry = (typeof RECORDER_ENTRIES)[number];

/** On a stack that is not known to be the thread's own, frames within this many bytes are taken to be on the same one. */
const SAME_STACK_DISTANCE = 8 << 20;

const FLAGS_SAVE = `
    push rax
    lahf
    seto al
    push rax`;
const FLAGS_RESTORE = `
    pop rax
    add al, 0x7f
    sahf
    pop rax`;
const SAVE = `${FLAGS_SAVE}
    push rcx
    push rdx
    push rbx
    push rsi
    push rdi`;
const RESTORE = `
    pop rdi
    pop rsi
    pop rbx
    pop rdx
    pop rcx${FLAGS_RESTORE}`;
/** Bytes that SAVE pushes. */
const SAVED = 7 * 8;
/** SAVED and the lane's former busy mark. */
const SAVED_BUSY = SAVED + 8;

/** A null pointer to a record's place is never made: `reserve` leaves it in rax. Wants the lane's header in rcx. */
const RESERVE = `
    mov eax, ${RECORD_BYTES}
    xadd [rcx+${HEADER.head}], rax
    and eax, [rbx+${LANE.ringMask}]
    add rax, [rbx+${LANE.ring}]`;

/**
 * The same on the fast paths. The first record of each 64 KiB of the target's memory goes by `${p}_block`: it reads there before it writes. For a read
 * of memory that is there already the kernel maps all pages of the 64 KiB at once (fault_around_bytes in mm/memory.c), for a
 * write only the one; and the tracer has seen to it that it is there.
 */
const reserveFast = (p: string): string => `
    mov eax, ${RECORD_BYTES}
    xadd [rcx+${HEADER.head}], rax
    and eax, [rbx+${LANE.ringMask}]
    add rax, [rbx+${LANE.ring}]
    test ax, ax
    jz ${p}_block
${p}_reserved:`;
const reserveBlock = (p: string): string => `
${p}_block:
    cmp byte [rax], 0
    jmp ${p}_reserved`;

/** Fills the record at rax and publishes it, by its last store: rdx time stamp, esi slot, ecx what. */
const FILL = `
    mov [rax+${RECORD_TSC_OFFSET}], rdx
    mov [rax+${RECORD_SLOT_OFFSET}], esi
    mov [rax+${RECORD_WHAT_OFFSET}], ecx`;

/** Goes to `label` unless rcx, which is lost, lies on the thread's own stack. While that is not known, nothing does. */
const unlessOnOwnStack = (label: string): string => `
    sub rcx, [rbx+${LANE.stackLow}]
    cmp rcx, [rbx+${LANE.stackSize}]
    jae ${label}`;

/**
 * Takes the busy mark off, which lies on the stack as it was before. Nearly always it was 0, and the branch lets the
 * processor take that for granted: popping it back would make each event wait for the one before through memory.
 */
const unmark = (p: string): string => `
    cmp qword [rsp], 0
    jne ${p}_nested_end
    mov qword [rbx+${LANE.busy}], 0
${p}_end:
    pop rcx`;
/** One of a recorder that lay below us on the own stack was left behind by a jump, and is forgotten. */
const remark = (p: string): string => `
${p}_nested_end:
    lea rcx, [rsp+${SAVED_BUSY}]
    cmp [rsp], rcx
    ja ${p}_nested_keep
    mov rcx, [rsp]${unlessOnOwnStack(`${p}_nested_keep`)}
    mov rcx, rsp${unlessOnOwnStack(`${p}_nested_keep`)}
    mov qword [rsp], 0
${p}_nested_keep:
    mov rcx, [rsp]
    mov [rbx+${LANE.busy}], rcx
    jmp ${p}_end`;

export function recorderListing(
  places: RecorderPlaces,
  geometry: AgentGeometry,
  threadPointer: ThreadPointerSource = 'memory',
): string {
  const readThreadPointer = THREAD_POINTER_READS[threadPointer];
  // A head's call pushes heads + 16 i + 5; adding this constant (modulo 2^32) makes it (index << 4) | ENTRY.
  const toWhat = Number(
    BigInt.asIntN(
      32,
      BigInt(places.firstIndex) * BigInt(HEAD_SIZE) +
        BigInt(KIND_ENTRY) -
        BigInt(HEAD_AFTER_ENTRY) -
        places.heads,
    ),
  );
  const { laneTable, cache, queue, queueMask } = geometry;
  const data = `0x${places.data.toString(16)}`;
  const control = `0x${places.control.toString(16)}`;
  // They are mapped in one piece.
  const controlFromData = Number(places.control - places.data) + CONTROL.enabled;

  const timeStamp = `
    rdtsc
    shl rdx, 32
    or rdx, rax                      ; rdx: time stamp, all along`;

  const findLane = (ifNotCached: string): string => `
${THREAD_POINTER_LABEL}${ifNotCached}:
    ${readThreadPointer}
    mov rax, rsi
    shr rax, ${HASH_SHIFT}
    imul eax, eax, ${HASH_MULTIPLIER}
    shr eax, ${32 - CACHE_BITS}
    mov ebx, [rdi+rax*4+${cache}]
    lea rbx, [rdi+rbx+${laneTable}]  ; rbx: lane, all along
    cmp [rbx+${LANE.threadPointer}], rsi
    jne ${ifNotCached}`;

  const checkOwner = (ifOther: string): string => `
    mov rax, [rbx+${LANE.tidPointer}]
    mov eax, [rax]
    cmp eax, [rbx+${LANE.tid}]
    jne ${ifOther}`;

  // p: prefix of the labels. The two variants differ in where the return slot is, and in how they go on.
  const entry = (p: string, slotAddress: string, goOn: string, pass: string): string => `
${p}:${SAVE}
    mov rax, ${control}
    cmp dword [rax+${CONTROL.enabled}], 0
    je ${p}_off
    mov rdi, ${data}${findLane(`${p}_find`)}${checkOwner(`${p}_find`)}
${p}_lane:${timeStamp}
    push qword [rbx+${LANE.busy}]
    mov [rbx+${LANE.busy}], rsp
    cmp dword [rdi+${controlFromData}], 0
    je ${p}_leave
    lea rsi, ${slotAddress}          ; rsi: return slot
    cmp qword [rbx+${LANE.parked}], 0
    jne ${p}_parked
${p}_unparked:
    mov rax, [rbx+${LANE.shadow}]
    cmp [rax+${SHADOW.slot}], rsi
    jbe ${p}_shadow
${p}_top:                            ; rax: newest shadow entry
    cmp rax, [rbx+${LANE.shadowLimit}]
    jae ${p}_deep
    mov rcx, [rsi]
    sub rcx, [rbx+${LANE.trustedStart}]
    cmp rcx, [rbx+${LANE.trustedLength}]
    jae ${p}_trust
${p}_trusted:
    sub rax, [rbx+${LANE.shadowBase}]
    shr rax, 1                       ; open calls times ${RECORD_BYTES}: room for the records of their ends
    mov rcx, [rbx+${LANE.header}]
    add rax, [rcx+${HEADER.head}]
    sub rax, [rcx+${HEADER.tail}]
    cmp rax, [rbx+${LANE.ringLimit}]
    jae ${p}_full
    cmp dword [rbx+${LANE.lost}], 0
    jne ${p}_lost
${p}_write:${reserveFast(p)}
    mov rcx, [rsp+${SAVED_BUSY}]
    lea ecx, [rcx+${toWhat}]${FILL}
    mov eax, ${SHADOW.size}
    xadd [rbx+${LANE.shadow}], rax   ; reserves the entry above the newest
    mov [rax+${SHADOW.size + SHADOW.what}], rcx    ; and not parked: rcx is zero-extended
    mov rcx, [rsi]
    mov [rax+${SHADOW.size + SHADOW.returnAddress}], rcx
    mov rcx, [rsp+${SAVED_BUSY}]
    lea rcx, [rcx+${HEAD_TRAMPOLINE - HEAD_AFTER_ENTRY}]
    mov [rax+${SHADOW.size + SHADOW.trampoline}], rcx
    mov [rax+${SHADOW.size + SHADOW.slot}], rsi
    ${goOn}

${p}_find:
    call find_lane
    test rbx, rbx
    jne ${p}_lane
    mov rax, [rdi+${laneTable + LANE.header}]
    lock add qword [rax+${HEADER.dropped}], 2
    jmp ${p}_pass

${p}_parked:                         ; an unwinder was at work: is it over?
    cmp rsi, [rbx+${LANE.parked}]
    jb ${p}_unparked
    mov rcx, [rbx+${LANE.parked}]
    sub rcx, [rbx+${LANE.stackLow}]
    cmp rcx, [rbx+${LANE.stackSize}]
    setb al
    mov rcx, rsi
    sub rcx, [rbx+${LANE.stackLow}]
    cmp rcx, [rbx+${LANE.stackSize}]
    setb cl
    cmp al, cl
    jne ${p}_unparked                ; on another stack: nothing can be told
    call unpark
    jmp ${p}_unparked

${p}_shadow:                         ; the newest entry is not above the new call on the stack
    mov rcx, [rax+${SHADOW.slot}]
    cmp rcx, rsi
    ja ${p}_top
    jne ${p}_other_slot
    mov rcx, [rsi]
    cmp rcx, [rax+${SHADOW.trampoline}]
    jne ${p}_over
    cmp rax, [rbx+${LANE.shadowLimit}]   ; a tail call: the caller is open as well
    jae ${p}_deep
    jmp ${p}_trusted
${p}_other_slot:
    test rcx, rcx
    je ${p}_over${unlessOnOwnStack(`${p}_top`)}                     ; another stack, a coroutine's perhaps: leave it alone
    mov rcx, rsi${unlessOnOwnStack(`${p}_top`)}
${p}_over:
    cmp qword [rsp], 0               ; did we interrupt a recorder on this thread? then it may be making this entry
    jne ${p}_nested
${p}_void:
    call end_call
    lea rax, [rax-${SHADOW.size}]
    mov [rbx+${LANE.shadow}], rax
    jmp ${p}_shadow
${p}_nested:                         ; a recorder below us on the own stack was jumped out of, and is no more
    mov rcx, [rsp]
    cmp rcx, rsp
    ja ${p}_top${unlessOnOwnStack(`${p}_top`)}
    mov rcx, rsp${unlessOnOwnStack(`${p}_top`)}
    mov qword [rsp], 0
    jmp ${p}_void

${p}_trust:                          ; the caller is not in the first trusted range
    push rdx
    mov rdi, ${data}
    mov rdx, [rdi+${DATA.trustedCount}]
    lea rdi, [rdi+${DATA.trusted}]
${p}_trust_next:
    sub rdx, 1
    jb ${p}_untrusted
    mov rcx, [rsi]
    sub rcx, [rdi]
    cmp rcx, [rdi+8]
    lea rdi, [rdi+16]
    jae ${p}_trust_next
    pop rdx
    jmp ${p}_trusted
${p}_untrusted:
    pop rdx
    sub rax, [rbx+${LANE.shadowBase}]
    shr rax, 1
    mov rcx, [rbx+${LANE.header}]
    add rax, [rcx+${HEADER.head}]
    sub rax, [rcx+${HEADER.tail}]
    mov edi, 1
    cmp rax, [rbx+${LANE.ringLimit}]
    jae ${p}_count
    cmp dword [rbx+${LANE.lost}], 0
    je ${p}_untrusted_write
    call write_lost
${p}_untrusted_write:${RESERVE}
    mov rcx, [rsp+${SAVED_BUSY}]
    lea ecx, [rcx+${toWhat + KIND_LEAF - KIND_ENTRY}]${FILL}
    jmp ${p}_leave

${p}_deep:
    mov rdi, ${data}
    cmp dword [rdi+${DATA.depthIsFilter}], 0
    jne ${p}_leave
    mov rcx, [rbx+${LANE.header}]
${p}_full:
    mov edi, 2                       ; its entry and its exit
${p}_count:
    add [rbx+${LANE.lost}], edi
    add [rcx+${HEADER.dropped}], rdi
${p}_leave:
    pop qword [rbx+${LANE.busy}]
    jmp ${p}_pass
${p}_off:
    call settle
${p}_pass:
    ${pass}

${p}_lost:
    call write_lost
    jmp ${p}_write
${reserveBlock(p)}
${remark(p)}`;

  const passByHead = `
    mov rax, [rsp+${SAVED}]          ; go on where the head's second call would go: head+10 + rel32
    movsxd rcx, dword [rax+1]
    lea rax, [rax+rcx+5]
    mov [rsp+${SAVED}], rax${RESTORE}
    ret`;

  return `
${entry(
  'entry',
  `[rsp+${SAVED_BUSY + 8}]`,
  `${unmark('entry')}${RESTORE}
    ret 8`,
  passByHead,
)}
; For sites behind "push rbp; mov rbp, rsp": the slot is above the frame pointer, and the head goes on by a jump.
${entry(
  'entry_frame',
  '[rbp+8]',
  `mov [rsi], rcx                   ; the trampoline${unmark('entry_frame')}${RESTORE}
    ret`,
  `${RESTORE}
    ret`,
)}

; Entries only: nothing is swapped, the head goes on by a jump.
leaf:${SAVE}
    mov rax, ${control}
    cmp dword [rax+${CONTROL.enabled}], 0
    je leaf_pass
    mov rdi, ${data}${findLane('leaf_find')}${checkOwner('leaf_find')}
leaf_lane:${timeStamp}
    mov rcx, [rbx+${LANE.header}]
    mov rax, [rcx+${HEADER.head}]
    sub rax, [rcx+${HEADER.tail}]
    cmp rax, [rbx+${LANE.ringLimit}]
    jae leaf_full
    cmp dword [rbx+${LANE.lost}], 0
    jne leaf_lost
leaf_write:${reserveFast('leaf')}
    mov rcx, [rsp+${SAVED}]
    lea ecx, [rcx+${toWhat + KIND_LEAF - KIND_ENTRY}]
    lea rsi, [rsp+${SAVED + 8}]${FILL}
leaf_pass:${RESTORE}
    ret
leaf_find:
    call find_lane
    test rbx, rbx
    jne leaf_lane
    mov rax, [rdi+${laneTable + LANE.header}]
    lock add qword [rax+${HEADER.dropped}], 1
    jmp leaf_pass
leaf_full:
    add dword [rbx+${LANE.lost}], 1
    add qword [rcx+${HEADER.dropped}], 1
    jmp leaf_pass
leaf_lost:
    call write_lost
    jmp leaf_write
${reserveBlock('leaf')}

; A traced function has returned to its trampoline.
exit:
    lea rsp, [rsp-8]                 ; the slot is ours again before a signal handler can take it${SAVE}
    mov rdi, ${data}${findLane('exit_find')}
exit_lane:${timeStamp}
    push qword [rbx+${LANE.busy}]
    mov [rbx+${LANE.busy}], rsp
    lea rsi, [rsp+${SAVED_BUSY}]     ; rsi: return slot
    mov rdi, [rbx+${LANE.shadow}]
    cmp [rdi+${SHADOW.slot}], rsi
    jne exit_search
    mov rcx, [rdi+${SHADOW.returnAddress}]
    mov [rsi], rcx
    mov rax, ${control}
    cmp dword [rax+${CONTROL.enabled}], 0
    je exit_pop
    mov rcx, [rbx+${LANE.header}]${reserveFast('exit')}
    mov ecx, [rdi+${SHADOW.what}]
    lea ecx, [rcx+${KIND_EXIT - KIND_ENTRY}]${FILL}
exit_pop:
    mov qword [rdi+${SHADOW.slot}], 0    ; what lies above the newest is void, also while it is being made
    lea rdi, [rdi-${SHADOW.size}]
    mov [rbx+${LANE.shadow}], rdi
exit_done:${unmark('exit')}${RESTORE}
    ret
${reserveBlock('exit')}
${remark('exit')}

exit_find:
    call find_lane_only
    jmp exit_lane                    ; lane 0 has an empty shadow stack: the search goes on elsewhere

exit_search:                         ; rdi: newest entry
    cmp rdi, [rbx+${LANE.shadowBase}]
    jbe exit_elsewhere
    cmp [rdi+${SHADOW.slot}], rsi
    je exit_below
    lea rdi, [rdi-${SHADOW.size}]
    jmp exit_search
exit_below:                          ; rdi: ours, with others above it
    mov rcx, [rdi+${SHADOW.returnAddress}]
    mov [rsi], rcx
    mov rax, ${control}
    cmp dword [rax+${CONTROL.enabled}], 0
    je exit_void
    mov rax, [rbx+${LANE.shadow}]
exit_above:                          ; on the own stack, what lies below a frame that returns is over
    cmp rax, rdi
    jbe exit_record
    mov rcx, [rax+${SHADOW.slot}]
    test rcx, rcx
    je exit_above_next
    cmp rcx, rsi
    jae exit_above_next
    cmp qword [rsp], 0               ; we interrupted a recorder: it may be making this entry
    jne exit_above_next${unlessOnOwnStack('exit_above_next')}
    mov rcx, rsi${unlessOnOwnStack('exit_above_next')}
    call end_call
exit_above_next:
    lea rax, [rax-${SHADOW.size}]
    jmp exit_above
exit_record:
    mov rcx, [rbx+${LANE.header}]${RESERVE}
    mov ecx, [rdi+${SHADOW.what}]
    lea ecx, [rcx+${KIND_EXIT - KIND_ENTRY}]${FILL}
exit_void:
    mov qword [rdi+${SHADOW.slot}], 0
    cmp qword [rsp], 0
    jne exit_done                    ; the newest entry may be in the making: void ones stay until later
    call pop_void
    jmp exit_done
exit_elsewhere:                      ; a coroutine that another thread entered: every lane's shadow stack
    push rdx
    mov rax, ${data}
    lea rdx, [rax+${laneTable}]
exit_lanes:
    cmp rdx, [rax+${DATA.lanesEnd}]
    jae exit_nowhere
    mov rdi, [rdx+${LANE.shadow}]
exit_entries:
    cmp rdi, [rdx+${LANE.shadowBase}]
    jbe exit_next_lane
    cmp [rdi+${SHADOW.slot}], rsi
    je exit_foreign
    lea rdi, [rdi-${SHADOW.size}]
    jmp exit_entries
exit_next_lane:
    lea rdx, [rdx+${LANE.size}]
    jmp exit_lanes
exit_foreign:
    mov rcx, [rdi+${SHADOW.returnAddress}]
    mov [rsi], rcx
    mov qword [rdi+${SHADOW.slot}], 0
    pop rdx
    jmp exit_done
exit_nowhere:                        ; cannot happen: whoever swapped the address made the entry first
    ud2

; An unwinder is about to walk this thread's stack: put the true return addresses back, remember that.
park:${SAVE}
    mov rdi, ${data}${findLane('park_find')}
park_lane:
    push qword [rbx+${LANE.busy}]
    mov [rbx+${LANE.busy}], rsp
    lea rsi, [rsp+${SAVED_BUSY + 8}] ; the unwinder's own return slot: frames to walk lie above, or there after a tail call
    mov rdi, [rbx+${LANE.shadow}]    ; newest first: of a chain of tail calls the newest stands in the slot
park_next:
    cmp rdi, [rbx+${LANE.shadowBase}]
    jbe park_done
    mov rdx, [rdi+${SHADOW.slot}]
    cmp rdx, rsi
    jb park_skip                     ; void, or over
    cmp dword [rdi+${SHADOW.parked}], 0
    jne park_skip
    mov rcx, rdx
    sub rcx, [rbx+${LANE.stackLow}]
    cmp rcx, [rbx+${LANE.stackSize}]
    setb al
    mov rcx, rsi
    sub rcx, [rbx+${LANE.stackLow}]
    cmp rcx, [rbx+${LANE.stackSize}]
    setb cl
    cmp al, cl
    jne park_skip
    test al, al
    jne park_swap
    mov rcx, rdx
    sub rcx, rsi
    cmp rcx, ${SAME_STACK_DISTANCE}
    jae park_skip
park_swap:                           ; in one step: the agent's thread may be at it too
    mov rax, [rdi+${SHADOW.trampoline}]
    mov rcx, [rdi+${SHADOW.returnAddress}]
    lock cmpxchg [rdx], rcx
    jne park_skip
    mov dword [rdi+${SHADOW.parked}], 1
park_skip:
    lea rdi, [rdi-${SHADOW.size}]
    jmp park_next
park_done:
    mov [rbx+${LANE.parked}], rsi
    pop qword [rbx+${LANE.busy}]
park_pass:${RESTORE}
    ret
park_find:
    call find_lane_only
    cmp [rbx+${LANE.threadPointer}], rsi
    je park_lane
    jmp park_pass

; ---- subroutines. rbx lane, rdx time stamp, rsi return slot unless said ----

; Recording is off: what a jump has left behind below us is forgotten, a recorder's mark, or a call that was about to have its return
; address swapped. Else the end of the session would wait for it. Called after SAVE, whose registers are lost.
settle:
    mov rdi, ${data}${findLane('settle_done')}${checkOwner('settle_done')}
    mov rcx, rsp${unlessOnOwnStack('settle_done')}
    lea rsi, [rsp+${SAVED + 16}]     ; the return slot, or below it
    mov rcx, [rbx+${LANE.busy}]
    test rcx, rcx
    je settle_calls
    cmp rcx, rsi
    ja settle_done                   ; a recorder that we have interrupted${unlessOnOwnStack('settle_done')}
    mov qword [rbx+${LANE.busy}], 0
settle_calls:
    mov rax, [rbx+${LANE.shadow}]
settle_next:
    cmp rax, [rbx+${LANE.shadowBase}]
    jbe settle_done
    mov rdx, [rax+${SHADOW.slot}]
    test rdx, rdx
    je settle_on
    cmp rdx, rsi
    ja settle_done
    mov rcx, rdx${unlessOnOwnStack('settle_done')}
    mov rcx, [rdx]
    cmp rcx, [rax+${SHADOW.returnAddress}]
    jne settle_on
    mov qword [rax+${SHADOW.slot}], 0
settle_on:
    lea rax, [rax-${SHADOW.size}]
    jmp settle_next
settle_done:
    ret

; The unwinder is over: swap again what is still open, end what is not. Oldest first: the reverse of park.
unpark:
    push rax
    push rcx
    mov rax, [rbx+${LANE.shadowBase}]
unpark_next:
    lea rax, [rax+${SHADOW.size}]
    cmp rax, [rbx+${LANE.shadow}]
    ja unpark_done
    cmp dword [rax+${SHADOW.parked}], 0
    je unpark_next
    mov rcx, [rax+${SHADOW.slot}]
    test rcx, rcx
    je unpark_next
    cmp rcx, rsi
    jbe unpark_over
    push rdx
    mov rdx, [rcx]
    cmp rdx, [rax+${SHADOW.returnAddress}]
    jne unpark_gone
    mov rdx, [rax+${SHADOW.trampoline}]
    mov [rcx], rdx
    mov dword [rax+${SHADOW.parked}], 0
    pop rdx
    jmp unpark_next
unpark_gone:
    pop rdx
unpark_over:
    call write_unwound
    mov qword [rax+${SHADOW.slot}], 0
    jmp unpark_next
unpark_done:
    mov qword [rbx+${LANE.parked}], 0
    call pop_void
    pop rcx
    pop rax
    ret

pop_void:
    mov rax, [rbx+${LANE.shadow}]
pop_void_next:
    cmp qword [rax+${SHADOW.slot}], 0
    jne pop_void_done
    lea rax, [rax-${SHADOW.size}]
    jmp pop_void_next
pop_void_done:
    mov [rbx+${LANE.shadow}], rax
    ret

; The call of entry rax is over, by all that can be told. Should its frame live on after all (a handler's or a coroutine's
; stack may lie within this one), it returns to its true address. rcx is lost.
end_call:
    mov rcx, [rax+${SHADOW.slot}]
    test rcx, rcx
    je end_call_done
    push rdx
    mov rdx, [rcx]
    cmp rdx, [rax+${SHADOW.trampoline}]
    jne end_call_gone
    mov rdx, [rax+${SHADOW.returnAddress}]
    mov [rcx], rdx
end_call_gone:
    pop rdx
    call write_unwound
    mov qword [rax+${SHADOW.slot}], 0
end_call_done:
    ret

; Records that the call of entry rax is over. Its end has room in the ring since it began.
write_unwound:
    push rcx
    push rdi
    mov rdi, [rbx+${LANE.header}]
    mov ecx, ${RECORD_BYTES}
    xadd [rdi+${HEADER.head}], rcx
    and ecx, [rbx+${LANE.ringMask}]
    add rcx, [rbx+${LANE.ring}]
    mov [rcx+${RECORD_TSC_OFFSET}], rdx
    mov edi, [rax+${SHADOW.slot}]
    mov [rcx+${RECORD_SLOT_OFFSET}], edi
    mov edi, [rax+${SHADOW.what}]
    lea edi, [rdi+${KIND_UNWOUND - KIND_ENTRY}]
    mov [rcx+${RECORD_WHAT_OFFSET}], edi
    pop rdi
    pop rcx
    ret

; Records how many records were lost since there was room. rcx: the lane's header, kept.
write_lost:
    push rdi
    xor edi, edi
    xchg [rbx+${LANE.lost}], edi${RESERVE}
    mov [rax+${RECORD_TSC_OFFSET}], rdx
    mov [rax+${RECORD_SLOT_OFFSET}], edi
    mov dword [rax+${RECORD_WHAT_OFFSET}], ${KIND_LOST}
    pop rdi
    ret

; rdi data -> rsi thread pointer, rbx the thread's lane, a new one if it has none; 0: there is none to be had.
find_lane:
    rdfsbase rsi
    xor ebx, ebx
    test rsi, rsi
    je find_done                     ; the program has not set up its thread yet
    lea rbx, [rdi+${laneTable + LANE.size}]
find_next:
    cmp rbx, [rdi+${DATA.lanesEnd}]
    jae find_claim
    cmp [rbx+${LANE.threadPointer}], rsi
    je find_match
find_step:
    lea rbx, [rbx+${LANE.size}]
    jmp find_next
find_match:
    mov rax, [rbx+${LANE.tidPointer}]
    mov eax, [rax]
    cmp eax, [rbx+${LANE.tid}]
    je find_cache
    test eax, eax
    je find_cache                    ; musl takes its id from a thread that ends, and calls some functions yet
    mov rax, rsi                     ; the thread block serves another thread now: the former owner has ended
    mov ecx, ${NO_THREAD_POINTER}
    lock cmpxchg [rbx+${LANE.threadPointer}], rcx
    jne find_step                    ; the tracer knew already
    mov rax, [rbx+${LANE.header}]
    mov dword [rax+${HEADER.state}], ${LANE_STATE.ended}
    jmp find_step
find_claim:
    mov rax, [rdi+${DATA.queuePop}]
find_try:
    cmp rax, [rdi+${DATA.queuePush}]
    jae find_none
    mov rcx, rax
    and ecx, ${queueMask}
    mov ebx, [rdi+rcx*4+${queue}]
    lea rcx, [rax+1]
    lock cmpxchg [rdi+${DATA.queuePop}], rcx
    jne find_try
    lea rbx, [rdi+rbx+${laneTable}]
    xor eax, eax
    cmp dword [rdi+${DATA.mayAskTid}], 0
    je find_asked
    push r11                         ; the kernel clobbers rcx and r11
    mov eax, ${SYS.gettid}
    syscall
    pop r11
find_asked:
    mov rcx, [rdi+${DATA.tidOffset}]
    test rcx, rcx
    je find_no_block
    add rcx, rsi
    test eax, eax
    je find_believe
    cmp [rcx], eax
    je find_named
find_no_block:
    lea rcx, [rbx+${LANE.tid}]       ; nothing to compare with but itself
    jmp find_named
find_believe:
    mov eax, [rcx]
find_named:
    mov [rbx+${LANE.tid}], eax
    mov [rbx+${LANE.tidPointer}], rcx
    mov rcx, [rbx+${LANE.shadowBase}]
    mov qword [rcx+${SHADOW.slot}], -1   ; the sentinel: above every return slot
    mov rcx, [rbx+${LANE.header}]
    mov [rcx+${HEADER.tid}], eax
    mov [rcx+${HEADER.threadPointer}], rsi
    mov dword [rcx+${HEADER.state}], ${LANE_STATE.live}
    mov [rbx+${LANE.threadPointer}], rsi
find_cache:
    mov rax, rsi
    shr rax, ${HASH_SHIFT}
    imul eax, eax, ${HASH_MULTIPLIER}
    shr eax, ${32 - CACHE_BITS}
    mov rcx, rbx
    sub rcx, rdi
    lea ecx, [rcx-${laneTable}]
    mov [rdi+rax*4+${cache}], ecx
find_done:
    ret
find_none:
    xor ebx, ebx
    ret

; The same, but never a new one: lane 0 if it has none.
find_lane_only:
    rdfsbase rsi
    lea rbx, [rdi+${laneTable + LANE.size}]
only_next:
    cmp rbx, [rdi+${DATA.lanesEnd}]
    jae only_none
    cmp [rbx+${LANE.threadPointer}], rsi
    je only_done
    lea rbx, [rbx+${LANE.size}]
    jmp only_next
only_none:
    lea rbx, [rdi+${laneTable}]
only_done:
    ret
`;
}
