import tseslint from 'typescript-eslint';
import { namesAsKeys } from './scripts/lint/names-as-keys.js';

// Rooms from the top of the house to its foundation; a room may use those below it, through their index only.
// docs/architecture.md draws the same picture.
const rooms = {
  cli: ['*'],
  output: ['trace', 'recording', 'errors', 'text'],
  trace: ['inside', 'agent', 'target', 'x86', 'elf', 'linux', 'symbols', 'recording', 'errors', 'text'],
  inside: ['agent', 'target', 'x86', 'elf', 'protocol', 'linux', 'errors'],
  stress: ['target', 'x86', 'elf', 'linux', 'check', 'model', 'protocol', 'errors'],
  agent: ['target', 'x86', 'errors', 'protocol', 'linux', 'recording'],
  target: ['x86', 'elf', 'linux', 'errors', 'symbols'],
  x86: ['elf', 'protocol', 'errors'],
  symbols: ['elf', 'errors', 'text'],
  elf: ['errors'],
  linux: ['errors'],
  recording: ['errors'],
  check: ['model', 'protocol', 'errors', 'text'],
  model: ['protocol', 'errors'],
  protocol: [],
  errors: ['text'],
  text: [],
};
const roomNames = Object.keys(rooms);
const core = ['protocol', 'model', 'check', 'recording', 'errors', 'text'];

const roomRules = roomNames.map((room) => {
  const forbidden = rooms[room].includes('*')
    ? []
    : roomNames.filter((other) => other !== room && !rooms[room].includes(other));
  const patterns = [
    {
      group: roomNames
        .filter((r) => r !== room)
        .flatMap((r) => [`../${r}/*`, `../../${r}/*`, `!../${r}/index.js`, `!../../${r}/index.js`]),
      message: 'Reach another room through its index.ts, its only public face (docs/architecture.md).',
    },
    ...(forbidden.length === 0
      ? []
      : [
          {
            group: forbidden.flatMap((r) => [`../${r}/index.js`, `../../${r}/index.js`]),
            message: `src/${room} may not use this room: data flows the other way (docs/architecture.md).`,
          },
        ]),
    ...(room === 'linux'
      ? []
      : [{ group: ['koffi'], message: 'Only src/linux knows koffi: ask it for the system call you need.' }]),
    ...(core.includes(room)
      ? [{ group: ['node:*', 'fs', 'path', 'os'], message: 'The core runs in a browser: no Node in it.' }]
      : []),
  ];
  return {
    files: [`src/${room}/**/*.ts`],
    ignores: ['**/*.test.ts', '**/*.test.support.ts'],
    rules: { 'no-restricted-imports': ['error', { patterns }] },
  };
});

const restrictedSyntax = [
  {
    selector: 'ExportDefaultDeclaration',
    message: 'Name what you export: a name can be searched for.',
  },
  {
    selector:
      'CallExpression[callee.property.name=/^(push|unshift|splice|concat|max|min|hypot|fromCharCode|fromCodePoint)$/] > SpreadElement',
    message: 'Arguments stand on the stack, which holds some 100,000 of them: use a loop, or concat.',
  },
];
/** Only src/text makes text of strings: elsewhere that would let through what it escapes. */
const noTextByAssertion = {
  selector: 'TSAsExpression > TSTypeReference[typeName.name="Text"]',
  message: 'Make text by the tag "text", or by plain(), which escapes.',
};

const streamsStay =
  'This leads to objects of Node that change standard streams for the program that shares them: see src/cli/terminal.ts.';
/** Tests and measurements have their streams to themselves; the product shares them with what it traces. */
const streamSyntax = [
  'ImportDeclaration[source.value=/^(node:)?process$/]',
  'ImportDeclaration[source.value=/^(node:)?tty$/] ImportSpecifier[imported.name!="isatty"]',
  'MemberExpression[object.name="globalThis"][property.name="process"]',
  'Property[key.name="stdio"] Literal[value="inherit"]',
].map((selector) => ({ selector, message: streamsStay }));
const streamProperties = ['stdin', 'stdout', 'stderr'].map((property) => ({
  object: 'process',
  property,
  message:
    'Looking at it makes the stream non-blocking for the program that shares it: write through src/cli/terminal.ts.',
}));

export default tseslint.config(
  { ignores: ['dist', 'node_modules', 'out', 'test/**/targets'] },
  ...tseslint.configs.strictTypeChecked.map((c) => ({ ...c, files: ['src/**/*.ts'] })),
  {
    files: ['src/**/*.ts'],
    plugins: { safepoke: { rules: { 'names-as-keys': namesAsKeys } } },
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      'no-restricted-properties': ['error', ...streamProperties],
      'no-restricted-syntax': ['error', ...restrictedSyntax, noTextByAssertion, ...streamSyntax],
      'safepoke/names-as-keys': 'error',
      'no-console': ['error'],
      '@typescript-eslint/restrict-template-expressions': [
        'error',
        { allowNumber: true, allowBoolean: true },
      ],
      '@typescript-eslint/no-confusing-void-expression': ['error', { ignoreArrowShorthand: true }],
      '@typescript-eslint/no-unnecessary-condition': ['error', { allowConstantLoopConditions: true }],
      '@typescript-eslint/prefer-literal-enum-member': 'off',
      eqeqeq: 'error',
    },
  },
  {
    files: ['src/text/text.ts'],
    rules: { 'no-restricted-syntax': ['error', ...restrictedSyntax, ...streamSyntax] },
  },
  {
    // What these are given they have made themselves, or it is a few rows.
    files: ['src/{protocol,model,check,stress}/**/*.ts'],
    rules: { 'no-restricted-syntax': ['error', restrictedSyntax[0], noTextByAssertion, ...streamSyntax] },
  },
  // Its listings are our own.
  { files: ['src/x86/assembler.ts'], rules: { 'safepoke/names-as-keys': 'off' } },
  {
    // Names and numbers of arguments are a test's own.
    files: ['src/**/*.test.ts', 'src/**/*.test.support.ts', 'src/bench/**/*.ts', 'src/test/**/*.ts'],
    rules: {
      'safepoke/names-as-keys': 'off',
      'no-restricted-properties': 'off',
      'no-restricted-syntax': ['error', restrictedSyntax[0], noTextByAssertion],
    },
  },
  {
    files: ['src/**/*.test.ts'],
    rules: {
      '@typescript-eslint/no-floating-promises': 'off',
      '@typescript-eslint/no-non-null-assertion': 'off',
    },
  },
  ...roomRules,
);
