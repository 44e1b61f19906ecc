"""The numbers of one example, step by step, each with its formula."""

from jbp.tracing.result import Trace as Trace
from jbp.tracing.result import TraceRow as TraceRow
from jbp.tracing.walk import trace as trace
