// The recorder: what a stub calls where a traced function begins, and where it is left. Emitted once per code region.
//
// Right before the `call` of either, rsp is the address of the stack slot that holds the function's return address: at its entry that is
// so by the ABI, and where it is left the displaced instructions have run already. So the slot identifies the call at both ends, and what
// is recorded follows from where the recorder was called (stubs.ts). Nothing is written to the program's stack that stays there when
// the recorder returns, and nothing on it is read.
//
// Step by step:
//   1. save every register it uses, and the flags: gcc lets callers keep values in registers that the ABI calls clobbered
//      when it knows that a local callee leaves them alone (-fipa-ra), so nothing at all may change
//   2. stop if recording is off: the control page says so, and reads as zeros in a forked child
//   3. find the thread's lane: a cache indexed by a hash of the thread pointer, then the owner's thread id compared, for a
//      new thread may have got the thread block of one that has ended. Only then the time stamp is read: what follows it
//      need not wait for it, what comes before would
//   4. see that the ring has room; else count the record as lost. Of an entry that is lost its slot is marked, so that the end of the
//      call is lost with it. Entries leave room for ends, which so find some
//   5. reserve a record by one xadd (one instruction: no signal can come between), fill it, publish it by its `what`
//
// There is no lock, no allocation and no system call on these paths; a thread's very first event asks for its id.
import { SYS } from '../linux/index.js';
import {
  KIND_LOST,
  KIND_PLACE,
  RECORD_BYTES,
  RECORD_SLOT_OFFSET,
  RECORD_TSC_OFFSET,
  RECORD_WHAT_OFFSET,
  SLOT_SHIFT,
} from '../recording/index.js';
import { CELL_SIZE, DEPTH_OFFSET } from '../x86/index.js';
import {
  CACHE_BITS,
  CONTROL,
  DATA,
  HASH_MULTIPLIER,
  HASH_SHIFT,
  HEADER,
  LANE,
  LANE_STATE,
  MARK,
  NO_THREAD_POINTER,
  type AgentGeometry,
} from './layout.js';

/** Where the recorder of one code region finds things. Absolute addresses in the target. */
export interface RecorderPlaces {
  readonly control: bigint;
  readonly data: bigint;
  /** Address of the region's first cell, aligned to CELL_SIZE. */
  readonly cells: bigint;
  /** Number of that cell among those of all regions. */
  readonly firstCell: number;
}

/** Bytes of the call of the recorder, with which a cell begins. Cells are numbered by their place: the address tells the number. */
export const RECORDER_CALL_LENGTH = 5;

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
/** Label of the place where a thread's lane is looked for. */
export const FIND_LABEL = 'find_lane';
/** Label of the subroutine that asks the kernel instead: it may be called where a thread pointer is read. */
export const ASK_LABEL = 'ask_thread';
/** Bytes of that read in the fast paths, and where a lane is looked for. */
export const THREAD_POINTER_READ_BYTES = { fast: 9, find: 5 } as const;
/** `rdfsbase rsi` and four `nop`: to be put there instead of the read from memory. */
export const THREAD_POINTER_BY_REGISTER = Uint8Array.of(0xf3, 0x48, 0x0f, 0xae, 0xc6, 0x90, 0x90, 0x90, 0x90);

/** What stands in the place of such a read of so many bytes, where the kernel is to be asked by what lies `distance` behind it. */
export function askingInstead(distance: number, bytes: number): Uint8Array {
  const CALL_REL32 = 0xe8;
  const NOP = 0x90;
  const instead = new Uint8Array(bytes).fill(NOP);
  instead[0] = CALL_REL32;
  new DataView(instead.buffer).setInt32(1, distance - RECORDER_CALL_LENGTH, true);
  return instead;
}

/**
 * Labels at which stubs enter the recorder. `entry`, `entry_frame` (behind `push rbp; mov rbp, rsp`, where the slot lies above the frame
 * pointer), `exit`; `leaf`: an entry whose call's end is not recorded; `entry_deep`, `leaf_deep`, `exit_deep`: something has been pushed, and how much stands
 * in the nop behind the call.
 */
export const RECORDER_ENTRIES = [
  'entry',
  'entry_frame',
  'entry_deep',
  'leaf',
  'leaf_deep',
  'exit',
  'exit_deep',
] as const;
export type RecorderEntry = (typeof RECORDER_ENTRIES)[number];

const SAVE = `
    push rax
    lahf
    seto al
    push rax
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
    pop rcx
    pop rax
    add al, 0x7f
    sahf
    pop rax`;
/** Bytes that SAVE pushes. */
const SAVED = 7 * 8;

export function recorderListing(
  places: RecorderPlaces,
  geometry: AgentGeometry,
  threadPointer: ThreadPointerSource = 'memory',
): string {
  const readThreadPointer = THREAD_POINTER_READS[threadPointer];
  // A cell's call pushes cells + 16 i + 5; adding this constant (modulo 2^32) makes it (number << 4) | PLACE.
  const toWhat = Number(
    BigInt.asIntN(
      32,
      BigInt(places.firstCell) * BigInt(CELL_SIZE) +
        BigInt(KIND_PLACE) -
        BigInt(RECORDER_CALL_LENGTH) -
        places.cells,
    ),
  );
  const { laneTable, cache, queue, queueMask } = geometry;
  const data = `0x${places.data.toString(16)}`;
  const control = `0x${places.control.toString(16)}`;

  /**
   * One way in. p: prefix of the labels. `begins`: a call does; a thread that has no lane where one ends had none where it began, and its
   * end is lost as its beginning was. The first record of each 64 KiB of the target's memory goes by `${p}_block`: it reads there before
   * it writes. For a read of memory that is there already the kernel maps all pages of the 64 KiB at once (fault_around_bytes in
   * mm/memory.c), for a write only the one; and the tracer has seen to it that it is there.
   */
  const way = (p: string, slot: string, limit: number, full: string, odd: string, begins = true): string => `
${p}:${SAVE}
    mov rax, ${control}
    cmp dword [rax+${CONTROL.enabled}], 0
    je ${p}_pass
    mov rdi, ${data}
${THREAD_POINTER_LABEL}${p}:
    ${readThreadPointer}
    mov rax, rsi
    shr rax, ${HASH_SHIFT}
    imul eax, eax, ${HASH_MULTIPLIER}
    shr eax, ${32 - CACHE_BITS}
    mov ebx, [rdi+rax*4+${cache}]
    lea rbx, [rdi+rbx+${laneTable}]  ; rbx: lane, all along
    cmp [rbx+${LANE.threadPointer}], rsi
    jne ${p}_find
    mov rax, [rbx+${LANE.tidPointer}]
    mov eax, [rax]
    cmp eax, [rbx+${LANE.tid}]
    jne ${p}_find
${p}_lane:
    rdtsc
    shl rdx, 32
    or rdx, rax                      ; rdx: time stamp, all along
    ${slot}
    shr rsi, ${SLOT_SHIFT}           ; rsi: slot
    mov rcx, [rbx+${LANE.header}]
    mov rax, [rcx+${HEADER.head}]
    sub rax, [rcx+${HEADER.tail}]
    cmp rax, [rbx+${limit}]
    jae ${p}_full
    cmp qword [rbx+${LANE.lost}], 0  ; and its marks
    jne ${p}_odd
${p}_write:
    mov eax, ${RECORD_BYTES}
    xadd [rcx+${HEADER.head}], rax
    and eax, [rbx+${LANE.ringMask}]
    add rax, [rbx+${LANE.ring}]
    test ax, ax
    jz ${p}_block
${p}_reserved:
    mov rcx, [rsp+${SAVED}]
    add ecx, ${toWhat}
    mov [rax+${RECORD_TSC_OFFSET}], rdx
    mov [rax+${RECORD_SLOT_OFFSET}], esi
    mov [rax+${RECORD_WHAT_OFFSET}], ecx
${p}_pass:${RESTORE}
    ret
${p}_block:
    cmp byte [rax], 0
    jmp ${p}_reserved
${p}_find:
    mov edx, ${Number(begins)}                       ; may it have a new one?
    call find_lane
    test rbx, rbx
    jne ${p}_lane
    mov rax, [rdi+${laneTable + LANE.header}]${
      begins
        ? ''
        : `
    cmp qword [rax+${HEADER.dropped}], 0   ; the call began before anything was recorded
    je ${p}_pass`
    }
    lock add qword [rax+${HEADER.dropped}], 1
    jmp ${p}_pass
${p}_full:${full}
    add dword [rbx+${LANE.lost}], 1
    add qword [rcx+${HEADER.dropped}], 1
    jmp ${p}_pass
${p}_odd:${odd}
    jmp ${p}_write
`;
  const unmark = `
    call find_mark`;
  // Ends do not tell of what was lost: the room that entries leave is for them alone.
  const tell = `
    call write_lost`;
  // What begins anew with a slot has replaced what was lost with it.
  const entry = (p: string, slot: string): string =>
    way(p, slot, LANE.entryLimit, '\n    call add_mark', `${unmark}${tell}`);

  const exit = (p: string, slot: string): string => `
${way(p, slot, LANE.ringLimit, unmark, `${unmark}\n    jne ${p}_full_lost`, false)}
${p}_full_lost:                      ; its entry was lost
    add dword [rbx+${LANE.lost}], 1
    add qword [rcx+${HEADER.dropped}], 1
    jmp ${p}_pass`;
  const onTop = `lea rsi, [rsp+${SAVED + 8}]`;
  const deep = `mov rsi, [rsp+${SAVED}]
    mov esi, [rsi+${DEPTH_OFFSET}]
    lea rsi, [rsp+rsi+${SAVED + 8}]`;
  return `
${entry('entry', onTop)}
${entry('entry_frame', 'lea rsi, [rbp+8]')}
${entry('entry_deep', deep)}
${way('leaf', onTop, LANE.ringLimit, '', tell)}
${way('leaf_deep', deep, LANE.ringLimit, '', tell)}
${exit('exit', onTop)}
${exit('exit_deep', deep)}

; ---- subroutines. rbx lane, rcx its header, rdx time stamp, rsi slot unless said: these are kept ----

; Marks the slot: the entry of a call was lost. Where there is no room for a mark one that is there goes: the end of its call is
; recorded then, without an entry, which harms nobody.
add_mark:
    call find_mark
    call mark_place
    xor edi, edi
add_mark_next:
    cmp dword [rax+rdi*4], 0
    je add_mark_free
    add edi, 1
    cmp edi, ${MARK.tries}
    jne add_mark_next
    mov [rax], esi
    ret
add_mark_free:
    mov [rax+rdi*4], esi
    add dword [rbx+${LANE.marks}], 1
    ret

; Takes the mark off the slot. Not equal: there was one.
find_mark:
    cmp dword [rbx+${LANE.marks}], 0
    je find_mark_done
    call mark_place
    xor edi, edi
find_mark_next:
    cmp [rax+rdi*4], esi
    je find_mark_found
    add edi, 1
    cmp edi, ${MARK.tries}
    jne find_mark_next
find_mark_done:
    ret
find_mark_found:
    mov dword [rax+rdi*4], 0
    sub dword [rbx+${LANE.marks}], 1
    test rbx, rbx                    ; never 0
    ret

; rax: where the slot's mark may be. Frames are 16 bytes apart.
mark_place:
    mov eax, esi
    shr eax, 1
    and eax, ${MARK.places - 1}
    shl eax, 2
    add rax, [rbx+${LANE.markTable}]
    ret

; Records how many records were lost since there was room, if any were.
write_lost:
    cmp dword [rbx+${LANE.lost}], 0
    je write_lost_done
    xor edi, edi
    xchg [rbx+${LANE.lost}], edi
    mov eax, ${RECORD_BYTES}
    xadd [rcx+${HEADER.head}], rax
    and eax, [rbx+${LANE.ringMask}]
    add rax, [rbx+${LANE.ring}]
    mov [rax+${RECORD_TSC_OFFSET}], rdx
    mov [rax+${RECORD_SLOT_OFFSET}], edi
    mov dword [rax+${RECORD_WHAT_OFFSET}], ${KIND_LOST}
write_lost_done:
    ret

; rdi data, edx whether the thread may have a new lane -> rsi thread pointer, rbx its lane; 0: it has none.
${FIND_LABEL}:
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
    test edx, edx
    je find_none
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

; rsi: what stands for this thread where thread pointers are not to be believed (layout.ts, kernelPointer). The kernel clobbers rcx and r11.
${ASK_LABEL}:
    push r11
    mov eax, ${SYS.gettid}
    syscall
    pop r11
    mov esi, eax
    shl rsi, ${HASH_SHIFT}
    not rsi
    ret
`;
}
