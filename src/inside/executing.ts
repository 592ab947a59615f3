// What stands before the C library's functions that execute another program in the same process. Where the trace is to go on there
// (`--follow`) the thread asks the tracer first, and the tracer makes everything ready for the successor (following.ts):
//
//   1. Nothing is done, not even a system call, where nobody follows; nothing that is seen outside of the thread's own stack in a child,
//      which may share our memory (vfork).
//   2. All signals but the rendezvous wait, so that no handler leaves the thread here, or executes something itself.
//   3. One thread asks at a time; another, or a handler of this one, executes without us.
//   4. The successor needs two descriptors. The program itself has closed them: they are opened again, by those of the agent's thread,
//      and this time stay open when the next program begins. They are none that a program takes for its standard input or output, where
//      those are closed, and leave the successor's loader some others.
//   5. The thread tells what it wants, and waits for the answer: until the tracer dies, or does not answer in time. It is called together
//      with the others meanwhile as from any other place.
//   6. The C library's function is called: with the environment that the tracer has written, or with the program's own. Signals come
//      again, but for the rendezvous: where that arrives between two programs it would kill the second.
//   7. If it returns, nothing was executed: the descriptors are closed, and the error is told. Our variable may have been the one that was
//      too much (E2BIG): it is tried without.
//
// Strings and tables of the program's are read by the tracer, for which a bad address is no more than an answer.
import { AGENT } from '../agent/index.js';
import { AT_FDCWD, FUTEX, FUTEX_OWNER_DIED, O_CLOEXEC, O_RDWR, SYS } from '../linux/index.js';
import { BLOCK, EXECUTION, EXECUTION_KIND, FOLLOW, PRIVATE, loadBlock } from './layout.js';
import { ALL_BUT_RENDEZVOUS, RENDEZVOUS_ALONE, SIG_SETMASK, changeMask } from './signal-mask.js';

/** All of them, as the C library has them. */
export const EXECUTING = [
  'execve',
  'execv',
  'execvpe',
  'execvp',
  'execl',
  'execlp',
  'execle',
  'fexecve',
  'execveat',
] as const;
export type Executing = (typeof EXECUTING)[number];

/** How often the patience of PRIVATE.patience (50 ms) has to end before the tracer is given up. */
const LOOKS = 60;
const E2BIG = 7;
const F_DUPFD = 0;
/** The first descriptor behind standard input, output and error. */
const LOWEST_FILE = 3;

/**
 * Below rbp, in each of the functions: what it was called with, the mask before, another mask, our descriptors, looks left, a result;
 * descriptors that are only tried.
 */
const FRAME = {
  path: 8,
  arguments: 16,
  environment: 24,
  directory: 32,
  flags: 40,
  kind: 48,
  mask: 56,
  otherMask: 64,
  blockFile: 72,
  objectFile: 80,
  looks: 88,
  result: 96,
  spare: [104, 112, 120],
  room: 128,
} as const;
/** Arguments behind the first that come in registers. */
const IN_REGISTERS = ['rsi', 'rdx', 'rcx', 'r8', 'r9'] as const;
/** Where the others begin: behind rbp and the return address. */
const ON_STACK = 16;

const END = `
    call execute
    mov rsp, rbp
    pop rbp
    ret`;

/** The program's own environment to rax. */
const OWN_ENVIRONMENT = `
    mov rax, [rel ${PRIVATE.environ}]
    mov rax, [rax]`;

function fixedListing(kind: number, environment: 'given' | 'own'): string {
  return `
    sub rsp, ${FRAME.room}
    mov [rbp-${FRAME.path}], rdi
    mov [rbp-${FRAME.directory}], rdi
    mov [rbp-${FRAME.arguments}], rsi
    ${environment === 'given' ? 'mov rax, rdx' : OWN_ENVIRONMENT}
    mov [rbp-${FRAME.environment}], rax
    mov qword [rbp-${FRAME.kind}], ${kind}${END}`;
}

/** The table of arguments is made on the stack, as the C library does. */
function listListing(name: Executing, kind: number, environment: 'given' | 'own'): string {
  return `
    sub rsp, ${FRAME.room + 8 * (IN_REGISTERS.length + 1)}
${IN_REGISTERS.map((register, i) => `    mov [rsp+${8 * i}], ${register}`).join('\n')}
    mov [rbp-${FRAME.path}], rdi
    mov qword [rbp-${FRAME.kind}], ${kind}
    mov r10, rsp
    xor ecx, ecx
${name}.count:
    call listed_argument
    add ecx, 1
    test rax, rax
    jne ${name}.count
    ${environment === 'given' ? 'call listed_argument' : OWN_ENVIRONMENT}
    mov [rbp-${FRAME.environment}], rax
    mov rdx, rcx
    shl rdx, 3
    add rdx, 15
    and rdx, -16
    sub rsp, rdx
    mov [rbp-${FRAME.arguments}], rsp
${name}.copy:
    sub ecx, 1
    js ${name}.copied
    call listed_argument
    mov [rsp+rcx*8], rax
    jmp ${name}.copy
${name}.copied:${END}`;
}

/** The body of one of the functions, behind "push rbp; mov rbp, rsp". */
export function executeListing(name: Executing): string {
  switch (name) {
    case 'execve':
      return fixedListing(EXECUTION_KIND.path, 'given');
    case 'execv':
      return fixedListing(EXECUTION_KIND.path, 'own');
    case 'execvpe':
      return fixedListing(EXECUTION_KIND.search, 'given');
    case 'execvp':
      return fixedListing(EXECUTION_KIND.search, 'own');
    case 'fexecve':
      return fixedListing(EXECUTION_KIND.descriptor, 'given');
    case 'execl':
      return listListing(name, EXECUTION_KIND.path, 'own');
    case 'execlp':
      return listListing(name, EXECUTION_KIND.search, 'own');
    case 'execle':
      return listListing(name, EXECUTION_KIND.path, 'given');
    case 'execveat':
      return `
    sub rsp, ${FRAME.room}
    mov [rbp-${FRAME.directory}], rdi
    mov [rbp-${FRAME.path}], rsi
    mov [rbp-${FRAME.arguments}], rdx
    mov [rbp-${FRAME.environment}], rcx
    mov [rbp-${FRAME.flags}], r8
    mov qword [rbp-${FRAME.kind}], ${EXECUTION_KIND.at}${END}`;
  }
}

const openOnly = (name: number, flags: number, file: number): string => `
${loadBlock('rsi')}
    add rsi, ${name}
    mov rdi, ${AT_FDCWD}
    mov edx, ${flags}
    xor r10d, r10d
    mov eax, ${SYS.openat}
    syscall
    mov [rbp-${file}], rax`;

/** Opens one of the agent's thread's: `label` is its own. */
const open = (label: string, name: number, file: number): string => `${openOnly(name, O_RDWR, file)}
    test rax, rax
    js execute_no_files
    cmp eax, ${LOWEST_FILE}
    jae ${label}
    mov edi, eax
    mov esi, ${F_DUPFD}
    mov edx, ${LOWEST_FILE}
    mov eax, ${SYS.fcntl}
    syscall
    mov rdi, [rbp-${file}]
    mov [rbp-${file}], rax
    call execute_close_one
    cmp qword [rbp-${file}], 0
    jl execute_no_files
${label}:`;

/** One more, by no other system call than is made anyway. Another thread may start a program meanwhile, which does not get it. */
const tryFile = (spare: number): string => openOnly(BLOCK.keptBlock, O_RDWR | O_CLOEXEC, spare);

const giveUpFile = (spare: number): string => `
    mov rdi, [rbp-${spare}]
    call execute_close_one`;

const tell = (from: number, register: 'rax' | 'eax', to: number): string => `
    mov rax, [rbp-${from}]
    mov [r8+${to}], ${register}`;

/** What they share. `real` has the places of the C library's functions. Stands where the frame of their caller is kept in rbp. */
export function executingListing(real: (name: Executing) => number): string {
  return `
listed_argument:                            ; rax: number rcx of a list; r10 those that came in registers
    cmp ecx, ${IN_REGISTERS.length}
    jae listed_on_stack
    mov rax, [r10+rcx*8]
    ret
listed_on_stack:
    mov rax, [rbp+rcx*8+${ON_STACK - 8 * IN_REGISTERS.length}]
    ret

execute:                                    ; rbp the frame of the function: rax its result
    sub rsp, 8
    mov r8, [rel ${PRIVATE.blockAt}]         ; 1.
    test r8, r8
    je execute_alone
${loadBlock('r8')}
    cmp dword [r8+${BLOCK.follow}], ${FOLLOW.yes}
    jne execute_alone
    mov edx, [r8+${AGENT.owner}]
    test edx, ${FUTEX_OWNER_DIED}
    jne execute_alone
    mov eax, ${SYS.getpid}
    syscall
    cmp eax, [rel ${PRIVATE.owner}]
    jne execute_alone
    mov rax, ${ALL_BUT_RENDEZVOUS}           ; 2.
    mov [rbp-${FRAME.otherMask}], rax
${changeMask(SIG_SETMASK, `rbp-${FRAME.otherMask}`, `rbp-${FRAME.mask}`)}
    mov eax, ${SYS.gettid}                   ; 3.
    syscall
    mov ecx, eax
    xor eax, eax
${loadBlock('r8')}
    lock cmpxchg dword [r8+${BLOCK.asker}], ecx
    jne execute_unasked
    mov qword [rbp-${FRAME.blockFile}], -1   ; 4.
    mov qword [rbp-${FRAME.objectFile}], -1
${open('execute_block_file', BLOCK.keptBlock, FRAME.blockFile)}
${open('execute_object_file', BLOCK.keptObject, FRAME.objectFile)}
${FRAME.spare.map(tryFile).join('')}
${FRAME.spare.map(giveUpFile).join('')}
${FRAME.spare.map((spare) => `    cmp qword [rbp-${spare}], 0\n    jl execute_no_files`).join('\n')}
${loadBlock('r8')}          ; 5.
${tell(FRAME.blockFile, 'eax', BLOCK.nextBlockFile)}
${tell(FRAME.objectFile, 'eax', BLOCK.nextObjectFile)}
${tell(FRAME.kind, 'eax', BLOCK.executionKind)}
${tell(FRAME.directory, 'eax', BLOCK.directory)}
${tell(FRAME.flags, 'eax', BLOCK.executionFlags)}
${tell(FRAME.path, 'rax', BLOCK.path)}
${tell(FRAME.environment, 'rax', BLOCK.givenEnvironment)}
${OWN_ENVIRONMENT}
    mov [r8+${BLOCK.ownEnvironment}], rax
    mov qword [rbp-${FRAME.looks}], ${LOOKS}
    mov dword [r8+${BLOCK.execution}], ${EXECUTION.asked}
execute_wait:
${loadBlock('r8')}
    mov eax, [r8+${BLOCK.execution}]
    cmp eax, ${EXECUTION.asked}
    jne execute_answered
    mov edx, [r8+${AGENT.owner}]
    test edx, ${FUTEX_OWNER_DIED}
    jne execute_give_up
    sub qword [rbp-${FRAME.looks}], 1
    js execute_tired
    mov eax, ${SYS.futex}
    lea rdi, [r8+${BLOCK.execution}]
    mov esi, ${FUTEX.wait}
    mov edx, ${EXECUTION.asked}
    lea r10, [rel ${PRIVATE.patience}]
    syscall
    jmp execute_wait
execute_tired:
    mov dword [r8+${BLOCK.follow}], ${FOLLOW.tired}
execute_give_up:
    mov eax, ${EXECUTION.asked}
    mov ecx, ${EXECUTION.denied}
    lock cmpxchg dword [r8+${BLOCK.execution}], ecx
    jne execute_wait                        ; answered just now
    jmp execute_denied
execute_answered:
    cmp eax, ${EXECUTION.granted}
    jne execute_denied
    mov rax, ${RENDEZVOUS_ALONE}             ; 6.
    or rax, [rbp-${FRAME.mask}]
    mov [rbp-${FRAME.otherMask}], rax
${changeMask(SIG_SETMASK, `rbp-${FRAME.otherMask}`)}
${loadBlock('rdx')}
    add rdx, ${BLOCK.environment}
    call execute_really
    mov [rbp-${FRAME.result}], rax           ; 7.
${loadBlock('r8')}
    mov dword [r8+${BLOCK.execution}], ${EXECUTION.none}
    call execute_close
${loadBlock('r8')}
    mov dword [r8+${BLOCK.asker}], 0
${changeMask(SIG_SETMASK, `rbp-${FRAME.mask}`)}
    call qword [rel ${PRIVATE.errnoLocation}]
    cmp dword [rax], ${E2BIG}
    je execute_alone
    mov rax, [rbp-${FRAME.result}]
    add rsp, 8
    ret
execute_no_files:
${loadBlock('r8')}
    mov dword [r8+${BLOCK.execution}], ${EXECUTION.noFiles}
execute_denied:                             ; the tracer's reason is asked for if the program becomes another now
    call execute_close
${changeMask(SIG_SETMASK, `rbp-${FRAME.mask}`)}
    mov rdx, [rbp-${FRAME.environment}]
    call execute_really
${loadBlock('r8')}
    mov dword [r8+${BLOCK.execution}], ${EXECUTION.none}
    mov dword [r8+${BLOCK.asker}], 0
    add rsp, 8
    ret
execute_unasked:
${changeMask(SIG_SETMASK, `rbp-${FRAME.mask}`)}
execute_alone:
    mov rdx, [rbp-${FRAME.environment}]
    call execute_really
    add rsp, 8
    ret

execute_close:
    mov rdi, [rbp-${FRAME.blockFile}]
    call execute_close_one
    mov rdi, [rbp-${FRAME.objectFile}]
execute_close_one:
    test rdi, rdi
    js execute_closed
    mov eax, ${SYS.close}
    syscall
execute_closed:
    ret

execute_really:                             ; rdx the environment
    sub rsp, 8
    mov eax, [rbp-${FRAME.kind}]
    mov rsi, [rbp-${FRAME.arguments}]
    mov rdi, [rbp-${FRAME.directory}]
    cmp eax, ${EXECUTION_KIND.at}
    je execute_at
    cmp eax, ${EXECUTION_KIND.descriptor}
    je execute_descriptor
    mov rdi, [rbp-${FRAME.path}]
    cmp eax, ${EXECUTION_KIND.search}
    je execute_search
    call qword [rel ${real('execve')}]
    jmp execute_failed
execute_search:
    call qword [rel ${real('execvpe')}]
    jmp execute_failed
execute_descriptor:
    call qword [rel ${real('fexecve')}]
execute_failed:
    mov rax, -1
    add rsp, 8
    ret
execute_at:                                 ; of C libraries not all have it
    mov r10, rdx
    mov rdx, rsi
    mov rsi, [rbp-${FRAME.path}]
    mov r8, [rbp-${FRAME.flags}]
    mov eax, ${SYS.execveat}
    syscall
    xor ecx, ecx
    sub ecx, eax
    mov [rsp], rcx
    sub rsp, 16
    call qword [rel ${PRIVATE.errnoLocation}]
    add rsp, 16
    mov rcx, [rsp]
    mov [rax], ecx
    mov rax, -1
    add rsp, 8
    ret
`;
}
