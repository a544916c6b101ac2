"""How a process starts and ends: XLA's flags and caches (`start`), several processes (`distributed`), a folder held by
one (`lock`), and mistakes told in one line (`errors`)."""
