"""The Qpid Management Framework, version 2: what agent and console both know of it.

Reference: docs/reference/qmf.md.
"""

from __future__ import annotations

from carod.qmf.body import BadBody, TooLong, read_body, sendable
from carod.qmf.codec import BadEncoding
from carod.qmf.names import (
    DIRECT,
    EXCHANGES,
    TOPIC,
    AgentName,
    Content,
    Opcode,
    equality,
    object_id,
    object_name,
    schema_id,
    split_object_name,
    word,
)
from carod.qmf.predicate import BadPredicate, Predicate
from carod.qmf.schema import Argument, Kind, Method, Property, SchemaClass, SchemaRequest, Statistic, Type

__all__ = [
    "DIRECT",
    "EXCHANGES",
    "TOPIC",
    "AgentName",
    "Argument",
    "BadBody",
    "BadEncoding",
    "BadPredicate",
    "Content",
    "Kind",
    "Method",
    "Opcode",
    "Predicate",
    "Property",
    "SchemaClass",
    "SchemaRequest",
    "Statistic",
    "TooLong",
    "Type",
    "equality",
    "object_id",
    "object_name",
    "read_body",
    "schema_id",
    "sendable",
    "split_object_name",
    "word",
]
