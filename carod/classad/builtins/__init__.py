"""The built-in functions, by what they work on; `carod.classad.functions` is the table they enter themselves in."""
