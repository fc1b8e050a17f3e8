"""The ClassAd language of HTCondor: expressions, ads and matching.

    ad = ClassAd.parse("Memory = 2048; ...")      # or ClassAd({"Memory": 2048})
    parse("TARGET.Memory >= RequestMemory").evaluate(job, machine)

Knows nothing of jobs or AMQP. Reference: docs/reference/classad.md.
"""

from .ad import ClassAd, matches, symmetric_match
from .evaluation import Expr
from .parser import ClassAdSyntaxError, parse, parse_value
from .values import ERROR, UNDEFINED, Value, unparse

__all__ = [
    "ERROR",
    "UNDEFINED",
    "ClassAd",
    "ClassAdSyntaxError",
    "Expr",
    "Value",
    "matches",
    "parse",
    "parse_value",
    "symmetric_match",
    "unparse",
]
