/**
 * The same program, machine and scenario as a Promela model, for SPIN.
 *
 * One process per context: the patcher (process 0), the threads if nobody is stopped, an NMI per CPU, a store buffer per
 * CPU. A process of a CPU's own program runs only while no NMI runs on it (`provided`). Each instruction that others can
 * see is one labelled step; those that nobody else can tell the time of are made with the step before, as in our own
 * search. Violations are assertions; a wait that never ends for finitely many NMIs is an invalid end state; in a storm
 * of NMIs it is an acceptance cycle of the never claim, under weak fairness (`pan -a -f`).
 *
 * SPIN knows no violation of symmetry or of order of ours: it explores what the text says. Bounds differ in one place:
 * a store buffer here has fewer entries, and an assertion says so if they do not suffice.
 */
import type { Argument, Instruction, Program } from '../model/index.js';
import { HEAD, TAIL, allows, isLocked, liveRegisters, passes } from '../model/index.js';

/** Entries of an exported store buffer: a state pays for each, used or not. */
const CAPACITY = { sc: 0, tso: 10, pso: 10, relaxed: 16 } as const;
/** Marks a fence in a buffer, and an addition (added to the cell's number, which starts at 1 there). */
const FENCE_MARK = 255;
const ADD_MARK = 128;
const TESTS = { equal: '==', 'not-equal': '!=', 'any-set': '&', 'none-set': '&' } as const;

/** The model as text. It needs no options: `spin -a`, `gcc -DSAFETY`, `./pan` (or, for a storm, `./pan -a -f`). */
export function promelaOf(program: Program): string {
  return new Exporter(program).text();
}

/** Where code is generated for: which CPU number it bears, and which of its two contexts. */
interface Place {
  readonly cpu: string;
  readonly nmi: boolean;
}

class Exporter {
  readonly #live: Int32Array;
  readonly #buffered: boolean;
  readonly #fifo: boolean;
  readonly #relaxed: boolean;
  readonly #cpus: number;
  readonly #capacity: number;
  readonly #nmiProcesses: boolean;

  constructor(readonly program: Program) {
    const { memory, cpus, nmis } = program.machine;
    this.#live = liveRegisters(program.instructions);
    this.#buffered = memory !== 'sc';
    this.#fifo = memory === 'tso';
    this.#relaxed = memory === 'relaxed';
    this.#cpus = cpus;
    this.#capacity = CAPACITY[memory];
    this.#nmiProcesses = nmis !== 0 || program.scenario.storm;
  }

  text(): string {
    const { program } = this;
    const { machine, scenario } = program;
    const left = program.without.length === 0 ? '' : ` without ${program.without.join(', ')}`;
    const parts = [
      `/* ${program.name}${left}: ${scenario.name}, ${machine.memory}, ${machine.cpus} CPUs, ` +
        `${scenario.storm ? 'a storm of' : machine.nmis} NMIs per CPU, overlap ${machine.overlap}. */`,
      this.#declarations(),
      this.#process('patcher', 'active', program.patcher.start, program.patcher.registers, {
        cpu: '0',
        nmi: false,
      }),
    ];
    if (program.live && this.#cpus > 1)
      parts.push(
        this.#process('thread', `active [${this.#cpus - 1}]`, program.other.start, program.other.registers, {
          cpu: '_pid',
          nmi: false,
        }),
      );
    if (this.#nmiProcesses) parts.push(this.#nmi());
    if (this.#buffered) parts.push(this.#storeBuffer());
    parts.push(this.#finalText());
    if (scenario.storm) parts.push(this.#claim());
    return `${parts.join('\n\n')}\n`;
  }

  #declarations(): string {
    const { program } = this;
    const { machine, scenario } = program;
    const lines = [`#define CPUS ${this.#cpus}`];
    program.cells.forEach((cell, i) => {
      const name =
        cell.kind === 'word'
          ? cell.name
          : cell.kind === 'text'
            ? `text of site ${scenario.sites[cell.site].name}, ${cell.piece === HEAD ? 'head' : 'tail'}`
            : cell.kind === 'lock'
              ? `site ${scenario.sites[cell.site].name} can be written`
              : `static buffer, ${cell.piece === HEAD ? 'head' : 'tail'}`;
      lines.push(`/* m[${i}]: ${name} */`);
    });
    program.pieces.forEach((bytes, i) => {
      if (i > 0)
        lines.push(`/* bytes ${i}: ${bytes.map((b) => b.toString(16).padStart(2, '0')).join(' ')} */`);
    });
    lines.push(
      `byte m[${program.cells.length}];`,
      'byte executing[CPUS];  /* site + 1, while in the midst of its instruction */',
      'byte fetched[CPUS];    /* which piece of it is there: 0 head, 1 tail */',
      'bool in_nmi_[CPUS];',
      'bool ready;            /* shared memory is set up */',
      'bool patched;          /* the patcher is done */',
      'byte n_;               /* where to go behind a d_step; 0 between steps */',
      'hidden byte i_; hidden byte j_; hidden byte v_; hidden byte w_; hidden byte e_;',
    );
    if (program.live) lines.push('byte threads_done;', `byte sync_mask[${2 * this.#cpus}];`);
    if (machine.overlap === 'never') lines.push('byte nmis_running;');
    if (!scenario.storm && machine.nmis !== 'unbounded' && machine.nmis > 0)
      lines.push(`byte nmis_left[CPUS] = ${machine.nmis};`);
    lines.push(
      `byte code_head[${program.bufferPieces.length}];`,
      `byte code_tail[${program.bufferPieces.length}];`,
    );
    if (this.#buffered) {
      lines.push(
        `#define CAPACITY ${this.#capacity}`,
        `#define FENCE ${FENCE_MARK}`,
        `#define ADD ${ADD_MARK}`,
        '/* own: entries for each cell; adds, fences: how many of those. All follow from cell[]. */',
        `typedef Buffer { byte n; byte cell[CAPACITY]; byte value[CAPACITY]; byte own[${program.cells.length}]; byte adds; byte fences }`,
        'Buffer b[CPUS];',
        '#define HOLDS(c, x) (b[c].own[x] != 0)',
        PUSH(this.#fifo),
        LOAD,
      );
    } else lines.push('#define HOLDS(c, x) (false)', 'inline load(who, loc, to) { to = m[loc] }');
    lines.push(this.#land());
    if (program.live) lines.push(ACKNOWLEDGE);
    return lines.join('\n');
  }

  /** Different bytes that land in a site which another CPU is executing are a violation. */
  #land(): string {
    const { textBase, scenario, breakpointPiece } = this.program;
    const end = textBase + 2 * scenario.sites.length;
    return [
      'inline land(who, loc, new) {',
      '  if',
      `  :: ((loc) >= ${textBase} && (loc) < ${end} && m[loc] != (new) &&`,
      `      !(((loc) - ${textBase}) % 2 == 0 && (m[loc] == ${breakpointPiece} || (new) == ${breakpointPiece}))) ->`,
      '     j_ = 0;',
      '     do',
      '     :: (j_ < CPUS) ->',
      '        if',
      `        :: (j_ != who && executing[j_] == ((loc) - ${textBase}) / 2 + 1 &&`,
      `            !(((loc) - ${textBase}) % 2 == 1 && fetched[j_] == 1) && !(HOLDS(j_, loc))) -> assert(false)`,
      '        :: else',
      '        fi;',
      '        j_++',
      '     :: else -> break',
      '     od;',
      '     j_ = 0',
      '  :: else',
      '  fi;',
      '  m[loc] = new',
      '}',
    ].join('\n');
  }

  #process(name: string, active: string, start: number, registers: readonly string[], place: Place): string {
    const body: string[] = [];
    const provided = this.#nmiProcesses ? ` provided (!in_nmi_[${place.cpu}])` : '';
    body.push(`${active} proctype ${name}()${provided}`, '{');
    if (registers.length > 0) body.push(`  byte ${registers.map((_, r) => `r${r}`).join(', ')};`);
    const first = name === 'patcher' ? this.#initialise() : ['(ready) ->'];
    body.push(...oneStep([...first, ...this.#tail(start, 0, place)]));
    this.#steps(start, place, body);
    body.push('end_done:', '  (false)', '}');
    return body.join('\n');
  }

  #initialise(): string[] {
    const { program } = this;
    const lines = program.cells.flatMap((c, i) => (c.initial === 0 ? [] : [`m[${i}] = ${c.initial};`]));
    program.bufferPieces.forEach(([head, tail], i) => {
      if (head !== 0) lines.push(`code_head[${i}] = ${head};`);
      if (tail !== 0) lines.push(`code_tail[${i}] = ${tail};`);
    });
    lines.push('ready = true;');
    return lines;
  }

  #nmi(): string {
    const { program } = this;
    const { machine, scenario } = program;
    const cpu = `(_pid - ${program.live ? this.#cpus : 1})`;
    const place: Place = { cpu, nmi: true };
    const guards = [`ready && !in_nmi_[${cpu}] && executing[${cpu}] == 0`];
    const effects = [`in_nmi_[${cpu}] = true;`];
    if (machine.overlap === 'never') {
      guards.push('nmis_running == 0');
      effects.push('nmis_running++;');
    }
    if (scenario.storm || program.patcherMasked) guards.push(`${cpu} != 0`);
    if (!scenario.storm && machine.nmis !== 'unbounded') {
      guards.push(`nmis_left[${cpu}] > 0`);
      effects.push(`nmis_left[${cpu}]--;`);
    }
    const body = [`active [CPUS] proctype nmi()`, '{'];
    if (program.nmi.registers.length > 0)
      body.push(`  byte ${program.nmi.registers.map((_, r) => `r${r}`).join(', ')};`);
    body.push(
      'end_idle:',
      ...oneStep([`(${guards.join(' && ')}) ->`, ...effects, ...this.#tail(program.nmi.start, 0, place)]),
    );
    this.#steps(program.nmi.start, place, body);
    body.push('  skip', '}');
    return body.join('\n');
  }

  /** Every visible instruction that can be reached from `start`, each as a labelled step. */
  #steps(start: number, place: Place, body: string[]): void {
    const seen = new Set<number>();
    const queue = this.#visibleFrom(start, place);
    for (const pc of queue) {
      if (seen.has(pc)) continue;
      seen.add(pc);
      const i = this.program.instructions[pc];
      body.push(`L${pc}: /* ${i.where.routine}: ${i.where.text} */`);
      if (i.kind === 'fetch-first' && i.alternative !== 0) {
        body.push('  if');
        for (const alternative of [pc, i.alternative]) {
          body.push('  ::', ...oneStep(this.#step(alternative, place)));
        }
        body.push('  fi;');
      } else body.push(...oneStep(this.#step(pc, place)));
      for (const from of i.kind === 'fetch-first' && i.alternative !== 0 ? [pc, i.alternative] : [pc])
        for (const next of this.#successors(from)) queue.push(...this.#visibleFrom(next, place));
    }
  }

  #successors(pc: number): number[] {
    const i = this.program.instructions[pc];
    switch (i.kind) {
      case 'branch':
      case 'check-access':
      case 'check-lock':
        return [i.next, i.target];
      case 'fetch-first':
      case 'fetch-second':
        return i.trap === 0 ? [i.next] : [i.next, i.trap];
      default:
        return [i.next];
    }
  }

  #visibleFrom(pc: number, place: Place): number[] {
    const i = this.program.instructions[pc];
    if (i.kind === 'end') return [];
    if (!this.#isInvisible(i, place)) return [pc];
    return this.#successors(pc).flatMap((next) => this.#visibleFrom(next, place));
  }

  /** As in our own search, but decided once and for all: a store of a program that NMIs may interrupt is visible. */
  #isInvisible(i: Instruction, place: Place): boolean {
    switch (i.kind) {
      case 'set':
      case 'calculate':
      case 'branch':
      case 'jump':
      case 'check-access':
      case 'expect':
      case 'emulate':
      case 'end':
        return true;
      case 'full-fence':
        return !this.#buffered;
      case 'write-fence':
        return !this.#buffered || this.#fifo || place.nmi || !this.#nmiProcesses;
      case 'store':
      case 'store-text':
        return this.#buffered && (place.nmi || !this.#nmiProcesses);
      case 'add':
        return this.#relaxed && (place.nmi || !this.#nmiProcesses);
      case 'load-code':
        return this.program.staticBase < 0;
      default:
        return false;
    }
  }

  #textCell(at: Argument, piece: number): string {
    const { textBase } = this.program;
    return at < 0 ? `${textBase - 2 + piece} + 2 * ${value(at)}` : `${textBase + 2 * (at - 1) + piece}`;
  }

  #lockCell(at: Argument): string {
    const { lockBase } = this.program;
    return at < 0 ? `${lockBase - 1} + ${value(at)}` : `${lockBase - 1 + at}`;
  }

  /** The statements of one visible step, up to the label of the next. */
  #step(pc: number, place: Place): string[] {
    const i = this.program.instructions[pc];
    const { cpu } = place;
    const live = this.#live[pc];
    const empty = this.#buffered ? `b[${cpu}].n == 0` : 'true';
    const goOn = (next: number, written: number): string[] => this.#tail(next, live | written, place);
    // A protocol adds to one word only, so additions that wait are additions to that word.
    const blocked = (cell: number): string =>
      this.#relaxed && this.#isAddedTo(cell) ? `b[${cpu}].adds == 0` : 'true';
    switch (i.kind) {
      case 'load':
        return [
          `${blocked(i.cell)} -> load(${cpu}, ${i.cell}, r${i.register});`,
          ...goOn(i.next, 1 << i.register),
        ];
      case 'wait': {
        const none = this.#buffered ? `!(HOLDS(${cpu}, ${i.cell})) && ${blocked(i.cell)} && ` : '';
        return [`(${none}${test(`m[${i.cell}]`, i.test, value(i.value))}) ->`, ...goOn(i.next, 0)];
      }
      case 'load-text':
        return [
          `load(${cpu}, ${this.#textCell(i.at, i.piece)}, r${i.register});`,
          ...goOn(i.next, 1 << i.register),
        ];
      case 'load-code':
        return [...this.#loadCode(i, cpu), ...goOn(i.next, 1 << i.register)];
      case 'store':
      case 'store-text':
      case 'write-fence':
        return [...this.#plain(i, place), ...goOn(i.next, 0)];
      case 'add':
        if (this.#relaxed) return [...this.#plain(i, place), ...goOn(i.next, 0)];
        return [`(${empty}) -> m[${i.cell}] = (m[${i.cell}] + ${value(i.value)}) & 255;`, ...goOn(i.next, 0)];
      case 'fetch-add':
        return [
          `(${this.#atomicGuard(i.cell, cpu)}) -> r${i.register} = m[${i.cell}];`,
          `m[${i.cell}] = (m[${i.cell}] + ${value(i.value)}) & 255;`,
          ...goOn(i.next, 1 << i.register),
        ];
      case 'compare-swap':
        return [
          `(${this.#atomicGuard(i.cell, cpu)}) -> v_ = m[${i.cell}];`,
          `if :: (v_ == ${value(i.expected)}) -> m[${i.cell}] = ${value(i.desired)} :: else fi;`,
          `r${i.register} = v_; v_ = 0;`,
          ...goOn(i.next, 1 << i.register),
        ];
      case 'full-fence':
        return [`(${empty}) ->`, ...goOn(i.next, 0)];
      case 'check-lock':
        return [
          `if :: (m[${this.#lockCell(i.at)}] == 0) -> r${i.register} = ${FAULT};`,
          ...this.#tail(i.target, live | (1 << i.register), place, new Map([[i.register, FAULT]])),
          ':: else ->',
          ...goOn(i.next, 0),
          'fi;',
        ];
      case 'set-lock': {
        const cell = this.#lockCell(i.at);
        // One that can be written anyway stays so.
        const locked = this.program.scenario.sites.flatMap((site, s) =>
          isLocked(site) ? [`${cell} == ${this.program.lockBase + s}`] : [],
        );
        return [
          `if :: (${locked.join(' || ')}) -> m[${cell}] = ${value(i.value)} :: else fi;`,
          ...goOn(i.next, 0),
        ];
      }
      case 'fetch-first':
        return this.#fetchFirst(i, place, live);
      case 'fetch-second':
        return this.#fetchSecond(i, place, live);
      case 'sync': {
        const mask = `sync_mask[${this.#maskIndex(place)}]`;
        const others = Array.from(
          { length: this.#cpus },
          (_, c) => `(executing[${c}] != 0 && ${c} != ${cpu} -> ${1 << c} : 0)`,
        );
        return [`(${empty}) -> ${mask} = ${others.join(' + ')};`, ...goOn(i.next, 0)];
      }
      case 'sync-wait':
        return [`(sync_mask[${this.#maskIndex(place)}] == 0) ->`, ...goOn(i.next, 0)];
      default:
        throw new Error(`${i.kind} is no step of its own`);
    }
  }

  #isAddedTo(cell: number): boolean {
    return this.program.instructions.some((i) => i.kind === 'add' && i.cell === cell);
  }

  #maskIndex(place: Place): string {
    return `2 * ${place.cpu} + ${place.nmi ? 1 : 0}`;
  }

  #atomicGuard(cell: number, cpu: string): string {
    if (!this.#buffered) return 'true';
    if (!this.#relaxed) return `b[${cpu}].n == 0`;
    return `!(HOLDS(${cpu}, ${cell})) && b[${cpu}].adds == 0 && b[${cpu}].fences == 0`;
  }

  #fetchFirst(i: Instruction & { kind: 'fetch-first' }, place: Place, live: number): string[] {
    const { cpu } = place;
    const { breakpointPiece } = this.program;
    const lines = [`load(${cpu}, ${this.#textCell(i.site + 1, i.piece)}, v_);`, 'if'];
    if (i.piece === HEAD)
      lines.push(
        `:: (v_ == ${breakpointPiece}) -> v_ = 0;`,
        ...(i.trap === 0 ? ['assert(false)'] : this.#tail(i.trap, live, place)),
        ':: else ->',
      );
    else lines.push(':: true ->');
    lines.push(
      `r${i.register} = v_; v_ = 0; executing[${cpu}] = ${i.site + 1}; fetched[${cpu}] = ${i.piece};`,
      ...this.#tail(i.next, live | (1 << i.register), place),
      'fi',
    );
    return lines;
  }

  #fetchSecond(i: Instruction & { kind: 'fetch-second' }, place: Place, live: number): string[] {
    const { cpu } = place;
    const { breakpointPiece, validImages } = this.program;
    const first = value(i.first);
    const [head, tail] = i.piece === TAIL ? [first, 'v_'] : ['v_', first];
    const valid = validImages[i.site].map(([h, t]) => `(${head} == ${h} && ${tail} == ${t})`).join(' || ');
    const lines = [
      `load(${cpu}, ${this.#textCell(i.site + 1, i.piece)}, v_);`,
      `executing[${cpu}] = 0; fetched[${cpu}] = 0;`,
    ];
    if (this.program.live) lines.push(`acknowledge(${cpu});`);
    lines.push('if');
    if (i.piece === HEAD)
      lines.push(
        `:: (v_ == ${breakpointPiece}) -> v_ = 0;`,
        ...(i.trap === 0 ? ['assert(false)'] : this.#tail(i.trap, live, place)),
        ':: else ->',
      );
    else lines.push(':: true ->');
    lines.push(`assert(${valid}); v_ = 0;`, ...this.#tail(i.next, live, place), 'fi');
    return lines;
  }

  #loadCode(i: Instruction & { kind: 'load-code' }, cpu: string): string[] {
    const table = i.piece === HEAD ? 'code_head' : 'code_tail';
    const fixed = `r${i.register} = ${table}[${value(i.code)}]`;
    if (this.program.staticBase < 0) return [`${fixed};`];
    const number = this.program.buffers.lastIndexOf(undefined);
    return [
      `if :: (${value(i.code)} == ${number}) -> load(${cpu}, ${this.program.staticBase + i.piece}, r${i.register})`,
      `:: else -> ${fixed} fi;`,
    ];
  }

  #push(cpu: string, cell: string, what: string): string[] {
    // A FIFO's push counts the entry itself; the other cannot tell a store from an addition.
    return [`push(${cpu}, ${cell} + 1, ${what});${this.#fifo ? '' : ` b[${cpu}].own[${cell}]++;`}`];
  }

  /** A store, a buffered addition or a write fence. */
  #plain(i: Instruction, place: Place): string[] {
    const { cpu } = place;
    switch (i.kind) {
      case 'store':
        return this.#buffered
          ? this.#push(cpu, `${i.cell}`, value(i.value))
          : [`m[${i.cell}] = ${value(i.value)};`];
      case 'store-text': {
        const cell = this.#textCell(i.at, i.piece);
        return this.#buffered
          ? this.#push(cpu, cell, value(i.value))
          : [`land(${cpu}, ${cell}, ${value(i.value)});`];
      }
      case 'add':
        return [`push(${cpu}, ${i.cell + 1} + ADD, ${value(i.value)}); b[${cpu}].adds++;`];
      case 'write-fence':
        return this.#buffered && !this.#fifo ? [`fence(${cpu});`] : [];
      default:
        throw new Error(`${i.kind} is no store`);
    }
  }

  /**
   * From `pc` on all invisible steps, then a jump to the next visible one; `mask` is what registers may hold, `known` those of them
   * whose value is certain: of a branch on such a one only the way that is taken is written.
   */
  #tail(pc: number, mask: number, place: Place, known: ReadonlyMap<number, number> = NONE_KNOWN): string[] {
    const { program } = this;
    const i = program.instructions[pc];
    if (i.kind === 'end') return this.#end(mask, place);
    if (!this.#isInvisible(i, place)) {
      const dead = mask & ~this.#live[pc];
      const zero = registersIn(dead).map((r) => `r${r} = 0;`);
      return [...zero, `goto L${pc};`];
    }
    const certain = (a: Argument): number | undefined => (a < 0 ? known.get(-a - 1) : a);
    const goOn = (next: number, written?: number, becomes?: number): string[] => {
      if (written === undefined) return this.#tail(next, mask, place, known);
      const after = new Map(known);
      after.delete(written);
      if (becomes !== undefined) after.set(written, becomes);
      return this.#tail(next, mask | (1 << written), place, after);
    };
    switch (i.kind) {
      case 'set':
        return [`r${i.register} = ${value(i.value)};`, ...goOn(i.next, i.register, certain(i.value))];
      case 'calculate': {
        const by = { plus: '+', and: '&', or: '|' }[i.by];
        return [
          `r${i.register} = (${value(i.left)} ${by} ${value(i.right)}) & 255;`,
          ...goOn(i.next, i.register),
        ];
      }
      case 'jump':
        return goOn(i.next);
      case 'branch': {
        const [left, right] = [certain(i.left), certain(i.right)];
        if (left !== undefined && right !== undefined)
          return goOn(passes(left, i.test, right) ? i.target : i.next);
        return [
          `if :: (${test(value(i.left), i.test, value(i.right))}) ->`,
          ...goOn(i.target),
          ':: else ->',
          ...goOn(i.next),
          'fi;',
        ];
      }
      case 'check-access': {
        const { sites } = program.scenario;
        const bad = [`${value(i.at)} == 0`, `${value(i.code)} == 0`];
        // Beyond the last of them a span may come only with a length that is not its own.
        bad.push(`${value(i.at)} > ${sites.length}`, `${value(i.code)} >= ${program.buffers.length}`);
        sites.forEach((site, s) => {
          if (site.page === 'unmapped' || !allows(site.page, i.access, place.nmi))
            bad.push(`${value(i.at)} == ${s + 1}`);
        });
        return [
          `if :: (${bad.join(' || ')}) -> r${i.register} = ${FAULT};`,
          ...goOn(i.target, i.register, FAULT),
          ':: else ->',
          ...goOn(i.next),
          'fi;',
        ];
      }
      case 'load-code':
        return [...this.#loadCode(i, place.cpu), ...goOn(i.next, i.register)];
      case 'expect':
        return [`assert(${value(i.value)} == ${i.result});`, ...goOn(i.next)];
      case 'emulate': {
        const valid = program.validImages[i.site]
          .map(([h, t]) => `(code_head[${value(i.code)}] == ${h} && code_tail[${value(i.code)}] == ${t})`)
          .join(' || ');
        return [`assert(${valid});`, ...goOn(i.next)];
      }
      case 'store':
      case 'store-text':
      case 'add':
      case 'write-fence':
        return [...this.#plain(i, place), ...goOn(i.next)];
      default:
        return goOn(i.next);
    }
  }

  #end(mask: number, place: Place): string[] {
    const zero = registersIn(mask).map((r) => `r${r} = 0;`);
    if (place.nmi) {
      const never = this.program.machine.overlap === 'never' ? ['nmis_running--;'] : [];
      return [...zero, `in_nmi_[${place.cpu}] = false;`, ...never, 'goto end_idle;'];
    }
    return [...zero, place.cpu === '0' ? 'patched = true;' : 'threads_done++;', 'goto end_done;'];
  }

  #storeBuffer(): string {
    const first = 1 + (this.program.live ? this.#cpus - 1 : 0) + (this.#nmiProcesses ? this.#cpus : 0);
    const cpu = `(_pid - ${first})`;
    const lines = ['active [CPUS] proctype store_buffer()', '{', 'end_empty:', '  do', '  :: atomic {'];
    const entries = this.#fifo ? 1 : this.#capacity;
    if (entries > 1) lines.push('       if');
    for (let e = 0; e < entries; e++) {
      const guards = [`b[${cpu}].n > ${e}`];
      for (let before = 0; before <= e && !this.#fifo; before++)
        guards.push(`b[${cpu}].cell[${before}] != FENCE`);
      if (e > 0) guards.push(`(b[${cpu}].cell[${e}] & 127) != (b[${cpu}].cell[${e - 1}] & 127)`);
      lines.push(
        `       ${entries > 1 ? ':: ' : ''}(${guards.join(' && ')}) -> e_ = ${e}${entries > 1 ? '' : ';'}`,
      );
    }
    if (entries > 1) lines.push('       fi;');
    const entry = `b[${cpu}].cell[e_]`;
    const holds = `b[${cpu}].value[e_]`;
    lines.push('       d_step {');
    const store = `v_ = ${entry} - 1; w_ = ${holds}; land(${cpu}, v_, w_); w_ = 0`;
    if (this.#relaxed)
      lines.push(
        '         if',
        `         :: (${entry} > ADD) -> v_ = ${entry} - ADD - 1; m[v_] = (m[v_] + ${holds}) & 255; b[${cpu}].adds--`,
        `         :: else -> ${store}; b[${cpu}].own[v_]--`,
        '         fi;',
      );
    else lines.push(`         ${store}; b[${cpu}].own[v_]--;`);
    lines.push(`         v_ = 0; remove(${cpu}, e_); e_ = 0`, '       }', '     }', '  od', '}');
    return [this.#fifo ? REMOVE_FIRST : REMOVE, lines.join('\n')].join('\n');
  }

  /** When nothing is under way, the text must be what was asked for, and writable only where it was. */
  #finalText(): string {
    const { program } = this;
    const quiet = ['patched'];
    for (let c = 0; c < this.#cpus; c++) {
      quiet.push(`!in_nmi_[${c}]`);
      if (this.#buffered) quiet.push(`b[${c}].n == 0`);
    }
    if (program.live) quiet.push(`threads_done == ${this.#cpus - 1}`);
    const wrong = program.finalText.flatMap(([head, tail], site) => [
      `m[${program.textBase + 2 * site}] != ${head}`,
      `m[${program.textBase + 2 * site + 1}] != ${tail}`,
    ]);
    program.cells.forEach((cell, i) => {
      if (cell.kind === 'lock') wrong.push(`m[${i}] != ${cell.initial}`);
    });
    return [
      'active proctype final_text()',
      '{',
      'end_watch:',
      `  atomic { (${quiet.join(' && ')} && (${wrong.join(' || ')})) -> assert(false) }`,
      '}',
    ].join('\n');
  }

  /** In a storm: the patcher waits for ever for what is never so. */
  #claim(): string {
    const waits: string[] = [];
    const seen = new Set<number>();
    const queue = this.#visibleFrom(this.program.patcher.start, { cpu: '0', nmi: false });
    for (const pc of queue) {
      if (seen.has(pc)) continue;
      seen.add(pc);
      const i = this.program.instructions[pc];
      if (i.kind === 'wait')
        waits.push(`(patcher@L${pc} && !(${test(`m[${i.cell}]`, i.test, value(i.value))}))`);
      if (i.kind === 'compare-swap' && i.expected >= 0)
        waits.push(`(patcher@L${pc} && m[${i.cell}] != ${value(i.expected)})`);
      for (const next of this.#successors(pc))
        queue.push(...this.#visibleFrom(next, { cpu: '0', nmi: false }));
    }
    return [
      `#define starved (${waits.join(' || ')})`,
      'never {',
      '  do',
      '  :: true',
      '  :: starved -> break',
      '  od;',
      'accept_starved:',
      '  do',
      '  :: starved',
      '  od',
      '}',
    ].join('\n');
  }
}

/**
 * Makes one indivisible step of statements that end in jumps. A `d_step` may not be left by a jump, so it notes where to
 * go, and the jump is made behind it.
 */
function oneStep(lines: readonly string[]): string[] {
  const jumpIn = (line: string): string | undefined => /^goto (\w+);$/.exec(line)?.[1];
  const targets = [...new Set(lines.map(jumpIn).filter((t) => t !== undefined))];
  const body = lines.map((line) => {
    const target = jumpIn(line);
    if (target === undefined) return line;
    return targets.length === 1 ? 'skip;' : `n_ = ${targets.indexOf(target)};`;
  });
  const jumps =
    targets.length === 1
      ? [`goto ${targets[0]}`]
      : ['if', ...targets.map((t, i) => `:: (n_ == ${i}) -> n_ = 0; goto ${t}`), 'fi'];
  return [
    '  atomic {',
    '    d_step {',
    ...body.map((l) => `      ${l}`),
    '    };',
    ...jumps.map((j) => `    ${j}`),
    '  };',
  ];
}

const NONE_KNOWN: ReadonlyMap<number, number> = new Map();

/** -EFAULT, folded into a byte as the model does. */
const FAULT = 242;

const LOAD = `inline load(who, loc, to) {
  to = m[loc];
  if
  :: (b[who].n > 0) ->
     i_ = 0;
     do
     :: (i_ < b[who].n) -> if :: (b[who].cell[i_] == (loc) + 1) -> to = b[who].value[i_] :: else fi; i_++
     :: else -> break
     od;
     i_ = 0
  :: else
  fi
}`;

/** Behind the last fence, entries are held in the order of their cells: they leave in any order. */
const PUSH = (fifo: boolean): string =>
  fifo
    ? `inline push(who, loc, new) {
  assert(b[who].n < CAPACITY); /* the bound of the exported model, not a violation */
  b[who].cell[b[who].n] = loc; b[who].value[b[who].n] = new; b[who].n++; b[who].own[(loc) - 1]++
}`
    : `inline push(who, loc, new) {
  assert(b[who].n < CAPACITY); /* the bound of the exported model, not a violation */
  i_ = b[who].n;
  do
  :: (i_ > 0 && b[who].cell[i_ - 1] != FENCE && (b[who].cell[i_ - 1] & 127) > ((loc) & 127)) ->
     b[who].cell[i_] = b[who].cell[i_ - 1]; b[who].value[i_] = b[who].value[i_ - 1]; i_--
  :: else -> break
  od;
  b[who].cell[i_] = loc; b[who].value[i_] = new; b[who].n++; i_ = 0
}
inline fence(who) {
  if
  :: (b[who].n > 0 && b[who].cell[b[who].n - 1] != FENCE) ->
     assert(b[who].n < CAPACITY);
     b[who].cell[b[who].n] = FENCE; b[who].n++; b[who].fences++
  :: else
  fi
}`;

const REMOVE_FIRST = `inline remove(who, entry) {
  i_ = entry;
  do
  :: (i_ + 1 < b[who].n) ->
     b[who].cell[i_] = b[who].cell[i_ + 1]; b[who].value[i_] = b[who].value[i_ + 1]; i_++
  :: else -> break
  od;
  b[who].n--; b[who].cell[b[who].n] = 0; b[who].value[b[who].n] = 0; i_ = 0
}`;

/** A fence at the head holds nothing back any more, and of two in a row one is enough: such a one goes as well. */
const REMOVE = `inline remove(who, entry) {
  do
  :: true ->
     i_ = entry;
     do
     :: (i_ + 1 < b[who].n) ->
        b[who].cell[i_] = b[who].cell[i_ + 1]; b[who].value[i_] = b[who].value[i_ + 1]; i_++
     :: else -> break
     od;
     b[who].n--; b[who].cell[b[who].n] = 0; b[who].value[b[who].n] = 0; i_ = 0;
     if
     :: (b[who].n > entry && b[who].cell[entry] == FENCE &&
         (entry == 0 || b[who].cell[entry - (entry > 0 -> 1 : 0)] == FENCE)) -> b[who].fences--
     :: else -> break
     fi
  od
}`;

/** CPU c has been between two instructions: nobody need wait for it any longer. */
const ACKNOWLEDGE = `inline acknowledge(who) {
  j_ = 0;
  do
  :: (j_ < 2 * CPUS) -> sync_mask[j_] = sync_mask[j_] & (255 - (1 << (who))); j_++
  :: else -> break
  od;
  j_ = 0
}`;

function value(a: Argument): string {
  return a < 0 ? `r${-a - 1}` : `${a}`;
}

function test(left: string, how: keyof typeof TESTS, right: string): string {
  const bits = `(${left} & ${right})`;
  if (how === 'any-set') return `${bits} != 0`;
  if (how === 'none-set') return `${bits} == 0`;
  return `${left} ${TESTS[how]} ${right}`;
}

function registersIn(mask: number): number[] {
  const registers: number[] = [];
  for (let r = 0; mask >> r !== 0; r++) if ((mask & (1 << r)) !== 0) registers.push(r);
  return registers;
}
