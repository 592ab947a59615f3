// Lowers a protocol to x86-64: the definition that the checker searches becomes the machine code that runs. Each operation
// stands as a comment above its instructions.
//
//   r15  address of the protocol's block: its words, then two constant code buffers (layout below)
//   rbp  address of the context's frame: one slot of 8 bytes for each register of the definition
//
// Lowered code changes rax, rcx, rdx, rsi, rdi, r8 to r11 and the flags; it leaves rbx, rbp and r12 to r15 alone, and so must
// what it calls. A slot holds a 32-bit value sign-extended, or an address: so one comparison serves both.
//
// x86 keeps loads in order among themselves and stores among themselves, and lets a load overtake an older store (total store
// order); a locked instruction is a full barrier. Hence:
//
//   smp_mb           lock add dword [rsp-8], 0   (cheaper than mfence; nothing of ours lies below the stack pointer)
//   smp_wmb, smp_rmb no instruction: the order in which the listing stands is enough, as nothing reorders it
//   atomic_add       lock add        atomic_fetch_add  lock xadd        cmpxchg  lock cmpxchg
//
// What a definition leaves to its surroundings is called by these labels, which the listing around it must have:
//
//   write_text    rdi site, rsi code buffer, edx offset, rcx length -> eax 0 or -EFAULT
//   compare_text  rdi site, rsi code buffer, for a span rcx length -> eax 0 equal, 1 not, -EFAULT
//   unlock_text   rdi first byte, rcx length -> eax 0 or -EFAULT
//   lock_text     rdi first byte, rcx length
//   sync_core, sync_all, traced_lockdep_off, traced_handlers, traced_thread_work
//   emulate       rdi code buffer; jumped to, with the trapped site in the slot `trapped_ip`
//   retry         jumped to, the same
import { BREAKPOINT, CLOCK_UNIT_TICKS, SKIP, describeOperation, withoutSteps } from '../protocol/index.js';
import type { Operand, Operation, Protocol, Routine, Test } from '../protocol/index.js';

/** What the breakpoint buffer and the skip buffer hold: int3, and nopl 0x0(%rax,%rax,1). */
const INT3 = [0xcc];
const NOP5 = [0x0f, 0x1f, 0x44, 0x00, 0x00];
/** Bytes that a code buffer takes in the block. */
const CODE_BUFFER_SIZE = 8;
const SLOT_SIZE = 8;
/** Registers that the surroundings fill or read. */
const SURROUNDINGS_FILL = ['ip', 'old_code', 'new_code', 'result', 'trapped_ip'];
const WORD_SIZE = 4;
const ADDRESS_SIZE = 8;
const STACK_ALIGNMENT = 16;
/** `read-clock` divides the time-stamp counter by a power of two. */
const CLOCK_SHIFT = Math.log2(CLOCK_UNIT_TICKS);

/** Segment selectors of user code and data: __USER_CS and __USER_DS, arch/x86/include/asm/segment.h. */
const USER_CS = 0x33;
const USER_SS = 0x2b;

/** `sync_core` for the surroundings of lowered code: iret serialises, so it returns by that. */
export const SYNC_CORE = `
sync_core:
    mov rax, [rsp]
    lea rcx, [rsp+8]
    push ${USER_SS}
    push rcx
    pushfq
    push ${USER_CS}
    push rax
    iretq`;

/** `write_text` by plain stores, the last byte first: text must be writable. */
export const STORE_TEXT = `
write_text:
    add rdi, rdx
    add rsi, rdx
write_text_byte:
    sub rcx, 1
    js write_text_done
    mov al, byte [rsi+rcx]
    mov byte [rdi+rcx], al
    jmp write_text_byte
write_text_done:
    mov eax, 0
    ret
`;

/** `compare_text` of one site, where text is always readable. */
export const COMPARE_SITE = `
compare_text:
    mov eax, dword [rdi]
    cmp eax, dword [rsi]
    jne compare_text_differs
    mov al, byte [rdi+4]
    cmp al, byte [rsi+4]
    jne compare_text_differs
    mov eax, 0
    ret
compare_text_differs:
    mov eax, 1
    ret
`;

/** Where a word of the protocol lies in its block. */
export interface WordPlace {
  readonly offset: number;
  readonly size: 4 | 8;
}

/** A protocol as machine code to be. */
export interface LoweredProtocol {
  /** For `assemble`: a label for each routine, at which it is called. */
  readonly listing: string;
  readonly words: ReadonlyMap<string, WordPlace>;
  /** The block as it must be at the start: initial values and the constant code buffers. */
  readonly block: Uint8Array;
  /** Offset in the frame of each register of the definition. */
  readonly slots: ReadonlyMap<string, number>;
  /** Bytes of a frame: a multiple of 16. */
  readonly frameSize: number;
}

/**
 * Lowers all routines of a protocol, from which steps may have been left out. Throws `Error` where the definition uses a word
 * that it does not declare: a defect of the definition. `whileWaiting` is called each time that a wait of the patcher's goes
 * round; it changes nothing but the flags, or it does not return: a patcher that stops for good there is a run as any other.
 */
export function lowerProtocol(protocol: Protocol, whileWaiting?: string): LoweredProtocol {
  // Also removes what would stand in the place of steps that are not left out.
  return new Lowering(withoutSteps(protocol, []), whileWaiting).lower();
}

class Lowering {
  readonly #words = new Map<string, WordPlace>();
  readonly #slots = new Map<string, number>();
  readonly #lines: string[] = [];
  readonly #block: Uint8Array;
  readonly #breakpoint: number;
  readonly #skip: number;
  #labels = 0;
  #routineName = '';

  constructor(
    readonly protocol: Protocol,
    readonly whileWaiting: string | undefined,
  ) {
    let size = 0;
    for (const { name, use } of protocol.words) {
      const bytes = use === 'address' || use === 'code' ? ADDRESS_SIZE : WORD_SIZE;
      size = alignUp(size, bytes);
      this.#words.set(name, { offset: size, size: bytes });
      size += bytes;
    }
    this.#breakpoint = alignUp(size, CODE_BUFFER_SIZE);
    this.#skip = this.#breakpoint + CODE_BUFFER_SIZE;
    this.#block = new Uint8Array(this.#skip + CODE_BUFFER_SIZE);
    this.#block.set(INT3, this.#breakpoint);
    this.#block.set(NOP5, this.#skip);
    const view = new DataView(this.#block.buffer);
    for (const { name, initial } of protocol.words) {
      const { offset, size: bytes } = this.#word(name);
      if (bytes === ADDRESS_SIZE) view.setBigInt64(offset, BigInt(initial), true);
      else view.setInt32(offset, initial | 0, true);
    }
  }

  lower(): LoweredProtocol {
    // The surroundings fill these, whether the definition reads them or not.
    for (const name of SURROUNDINGS_FILL) this.#slot(name);
    if (this.protocol.unit === 'span') this.#slot('length');
    if (this.protocol.begin !== undefined) for (const name of ['region', 'region_length']) this.#slot(name);
    for (const routine of this.protocol.routines) this.#routine(routine);
    return {
      listing: this.#lines.join('\n'),
      words: this.#words,
      block: this.#block,
      slots: this.#slots,
      frameSize: alignUp(this.#slots.size * SLOT_SIZE, STACK_ALIGNMENT),
    };
  }

  #routine({ name, operations }: Routine): void {
    this.#routineName = name;
    this.#lines.push(`${name}:`);
    for (const operation of operations) {
      const number = operation.number === undefined ? '' : `${operation.number}) `;
      if (operation.op !== 'label') this.#lines.push(`    ; ${number}${describeOperation(operation)}`);
      this.#operation(operation, name);
    }
    if (operations.at(-1)?.op !== 'return') this.#emit('ret');
    this.#lines.push('');
  }

  #operation(o: Operation, routine: string): void {
    const local = (label: string): string => `${routine}.${label}`;
    switch (o.op) {
      case 'set':
        this.#fetch('rax', o.value);
        this.#keep(o.to);
        return;
      case 'calculate':
        this.#fetch('rax', o.left);
        this.#fetch('rcx', o.right);
        this.#emit(`${{ plus: 'add', and: 'and', or: 'or' }[o.by]} eax, ecx`);
        this.#keepValue(o.to);
        return;
      case 'load':
        this.#loadWord('rax', o.word);
        this.#keep(o.to);
        return;
      case 'store':
        this.#fetch('rax', o.value);
        this.#emit(`mov ${this.#memory(o.word)}, ${this.#part('a', o.word)}`);
        return;
      case 'fetch-add':
        this.#fetch('rax', o.value);
        if (o.old === undefined) this.#emit(`lock add ${this.#memory(o.word)}, ${this.#part('a', o.word)}`);
        else {
          this.#emit(`lock xadd ${this.#memory(o.word)}, ${this.#part('a', o.word)}`);
          this.#keepRead(o.old, o.word);
        }
        return;
      case 'compare-swap':
        this.#fetch('rax', o.expected);
        this.#fetch('rcx', o.desired);
        this.#emit(`lock cmpxchg ${this.#memory(o.word)}, ${this.#part('c', o.word)}`);
        this.#keepRead(o.old, o.word);
        return;
      case 'fence':
        if (o.kind === 'full') this.#emit('lock add dword [rsp-8], 0');
        else
          this.#lines.push(
            `    ; no instruction: x86 keeps ${o.kind === 'write' ? 'stores' : 'loads'} in order`,
          );
        return;
      case 'wait-until':
        this.#waitUntil(o);
        return;
      case 'count':
        this.#emit(`lock add ${this.#memory(o.word)}, 1`);
        return;
      case 'read-clock':
        this.#readClock();
        this.#keep(o.to);
        return;
      case 'note-longest': {
        const shorter = this.#freshLabel();
        this.#readClock();
        this.#emit(`sub eax, ${this.#slotMemory(o.since, 'dword')}`);
        this.#emit(`cmp eax, ${this.#memory(o.word)}`);
        this.#emit(`jbe ${shorter}`);
        this.#emit(`mov ${this.#memory(o.word)}, eax`);
        this.#lines.push(`${shorter}:`);
        return;
      }
      case 'write-text':
        this.#fetch('rdi', o.at);
        this.#fetch('rsi', o.code);
        this.#emit(`mov edx, ${o.offset}`);
        this.#fetch('rcx', o.length);
        this.#emit('call write_text');
        this.#keepValue(o.status);
        return;
      case 'compare-text':
        this.#fetch('rdi', o.at);
        this.#fetch('rsi', o.code);
        if (o.length !== undefined) this.#fetch('rcx', o.length);
        this.#emit('call compare_text');
        this.#keepValue(o.result);
        return;
      case 'unlock-text':
        this.#fetch('rdi', o.at);
        this.#fetch('rcx', o.length);
        this.#emit('call unlock_text');
        this.#keepValue(o.status);
        return;
      case 'lock-text':
        this.#fetch('rdi', o.at);
        this.#fetch('rcx', o.length);
        this.#emit('call lock_text');
        return;
      case 'execute':
        this.#emit(`call traced_${o.function}`);
        return;
      case 'emulate':
        this.#fetch('rdi', o.code);
        this.#emit('jmp emulate');
        return;
      case 'retry':
        this.#emit('jmp retry');
        return;
      case 'sync-core':
        this.#emit('call sync_core');
        return;
      case 'sync-all':
        this.#emit('call sync_all');
        return;
      case 'call':
        this.#emit(`call ${o.routine}`);
        return;
      case 'branch':
        this.#fetch('rax', o.left);
        this.#fetch('rcx', o.right);
        this.#emit(`${compares(o.test)} rax, rcx`);
        this.#emit(`${JUMPS[o.test]} ${local(o.to)}`);
        return;
      case 'jump':
        if (this.#lines.includes(`${local(o.to)}:`)) this.#goRound();
        this.#emit(`jmp ${local(o.to)}`);
        return;
      case 'label':
        this.#lines.push(`${local(o.name)}:`);
        return;
      case 'return':
        this.#emit('ret');
        return;
    }
  }

  #waitUntil(o: Operation & { op: 'wait-until' }): void {
    const again = this.#freshLabel();
    const passed = this.#freshLabel();
    const { waits } = o;
    const look = (): void => {
      this.#loadWord('rax', o.word);
      this.#emit(`${compares(o.test)} rax, rcx`);
      this.#emit(`${JUMPS[o.test]} ${passed}`);
    };
    this.#fetch('rcx', o.value);
    if (waits !== undefined) {
      look();
      // Not locked, as the patcher alone counts: a locked instruction would be a barrier that the definition does not have.
      this.#emit(`add ${this.#memory(waits)}, 1`);
    }
    this.#lines.push(`${again}:`);
    look();
    this.#emit('pause');
    this.#goRound();
    this.#emit(`jmp ${again}`);
    this.#lines.push(`${passed}:`);
  }

  #goRound(): void {
    if (this.whileWaiting !== undefined) this.#emit(`call ${this.whileWaiting}`);
  }

  #readClock(): void {
    this.#emit('rdtsc');
    this.#emit('shl rdx, 32');
    this.#emit('or rax, rdx');
    this.#emit(`shr rax, ${CLOCK_SHIFT}`);
    this.#emit('mov eax, eax');
  }

  /** Brings an operand into a register. */
  #fetch(register: 'rax' | 'rcx' | 'rdi' | 'rsi', operand: Operand): void {
    if (operand === BREAKPOINT) this.#emit(`lea ${register}, [r15+${this.#breakpoint}]`);
    else if (operand === SKIP) this.#emit(`lea ${register}, [r15+${this.#skip}]`);
    else if (typeof operand === 'string') this.#emit(`mov ${register}, ${this.#slotMemory(operand)}`);
    else if ((operand | 0) >= 0) this.#emit(`mov e${register.slice(1)}, ${operand}`);
    else this.#emit(`mov ${register}, ${operand | 0}`);
  }

  #loadWord(register: 'rax', word: string): void {
    const instruction = this.#word(word).size === ADDRESS_SIZE ? 'mov' : 'movsxd';
    this.#emit(`${instruction} ${register}, ${this.#memory(word)}`);
  }

  /** rax becomes the value of a register of the definition. */
  #keep(name: string): void {
    this.#emit(`mov ${this.#slotMemory(name)}, rax`);
  }

  /** The same for a 32-bit value in eax. */
  #keepValue(name: string): void {
    this.#emit('movsxd rax, eax');
    this.#keep(name);
  }

  #keepRead(name: string, word: string): void {
    if (this.#word(word).size === ADDRESS_SIZE) this.#keep(name);
    else this.#keepValue(name);
  }

  #slotMemory(name: string, size = ''): string {
    return `${size} [rbp+${this.#slot(name)}]`.trim();
  }

  #slot(name: string): number {
    let found = this.#slots.get(name);
    if (found === undefined) this.#slots.set(name, (found = this.#slots.size * SLOT_SIZE));
    return found;
  }

  #memory(word: string): string {
    const { offset, size } = this.#word(word);
    return `${size === ADDRESS_SIZE ? 'qword' : 'dword'} [r15+${offset}]`;
  }

  /** The part of rax or rcx that is as wide as the word. */
  #part(letter: 'a' | 'c', word: string): string {
    return `${this.#word(word).size === ADDRESS_SIZE ? 'r' : 'e'}${letter}x`;
  }

  #word(name: string): WordPlace {
    const found = this.#words.get(name);
    if (found === undefined) throw new Error(`protocol ${this.protocol.name} has no word ${name}`);
    return found;
  }

  #freshLabel(): string {
    return `${this.#routineName}.${++this.#labels}`;
  }

  #emit(instruction: string): void {
    this.#lines.push(`    ${instruction}`);
  }
}

const JUMPS: Readonly<Record<Test, string>> = {
  equal: 'je',
  'not-equal': 'jne',
  'any-set': 'jne',
  'none-set': 'je',
};

function compares(test: Test): 'cmp' | 'test' {
  return test === 'equal' || test === 'not-equal' ? 'cmp' : 'test';
}

function alignUp(size: number, alignment: number): number {
  return Math.ceil(size / alignment) * alignment;
}
