"""How a process starts and ends: XLA's flags and caches (`start`), tcmalloc (`allocator`), several processes
(`distributed`), a folder held by one (`lock`), signals, the names of commands (`program`), and errors of one line."""
