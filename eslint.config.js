import tseslint from 'typescript-eslint';

// Rooms from the top of the house to its foundation; a room may use those below it, through their index only.
// docs/architecture.md draws the same picture.
const rooms = {
  cli: ['*'],
  output: ['trace', 'recording', 'errors'],
  trace: ['inside', 'agent', 'target', 'x86', 'elf', 'linux', 'symbols', 'recording', 'errors'],
  inside: ['agent', 'target', 'x86', 'elf', 'protocol', 'linux', 'errors'],
  stress: ['target', 'x86', 'elf', 'linux', 'check', 'model', 'protocol', 'errors'],
  agent: ['target', 'x86', 'errors', 'protocol', 'linux', 'recording'],
  target: ['x86', 'elf', 'linux', 'errors', 'symbols'],
  x86: ['elf', 'protocol', 'errors'],
  symbols: ['elf', 'errors'],
  elf: ['errors'],
  linux: ['errors'],
  recording: ['errors'],
  check: ['model', 'protocol', 'errors'],
  model: ['protocol', 'errors'],
  protocol: [],
  errors: [],
};
const roomNames = Object.keys(rooms);
const core = ['protocol', 'model', 'check', 'recording', 'errors'];

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

const namedExports = {
  selector: 'ExportDefaultDeclaration',
  message: 'Name what you export: a name can be searched for.',
};

export default tseslint.config(
  { ignores: ['dist', 'node_modules', 'out', 'test/**/targets'] },
  ...tseslint.configs.strictTypeChecked.map((c) => ({ ...c, files: ['src/**/*.ts'] })),
  {
    files: ['src/**/*.ts'],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      'no-restricted-syntax': ['error', namedExports],
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
    // Tests and measurements have their streams to themselves; the product shares them with what it traces.
    files: ['src/**/*.ts'],
    ignores: ['src/test/**', 'src/bench/**', '**/*.test.ts', '**/*.test.support.ts'],
    rules: {
      'no-restricted-properties': [
        'error',
        ...['stdin', 'stdout', 'stderr'].map((property) => ({
          object: 'process',
          property,
          message:
            'Looking at it makes the stream non-blocking for the program that shares it: write through src/cli/terminal.ts.',
        })),
      ],
      'no-restricted-syntax': [
        'error',
        namedExports,
        ...[
          'ImportDeclaration[source.value=/^(node:)?process$/]',
          'ImportDeclaration[source.value=/^(node:)?tty$/] ImportSpecifier[imported.name!="isatty"]',
          'MemberExpression[object.name="globalThis"][property.name="process"]',
          'Property[key.name="stdio"] Literal[value="inherit"]',
        ].map((selector) => ({
          selector,
          message:
            'This leads to objects of Node that change standard streams for the program that shares them: see src/cli/terminal.ts.',
        })),
      ],
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
