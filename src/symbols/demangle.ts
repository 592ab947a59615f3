/** A C++ or Rust name as a person writes it; any other name unchanged. Cached. */
export declare function demangle(name: string): string;

/** A demangled name without its argument list: `foo::bar(int) const` becomes `foo::bar`. */
export declare function withoutArguments(demangled: string): string;
