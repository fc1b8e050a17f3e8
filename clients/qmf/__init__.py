"""Consoles of the Qpid Management Framework; `qmf.console` is the one that scripts import."""
