"""The client's commands: `carod submit` and those of the operator. Loaded one by one, by `carod.cli`."""
