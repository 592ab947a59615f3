/** Up to `limit` of `names` that are nearest to what `pattern` says, best first: for "no function matches; nearest: ...". */
export declare function nearestNames(pattern: string, names: Iterable<string>, limit?: number): string[];
