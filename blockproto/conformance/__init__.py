"""The conformance harness: what somebody's blockproto server or client does, held against the clauses of the spec.

It knows the wire (``blockproto.wire`` and what that needs) and plain sockets, and nothing of this project's own server
and client: those are examined like anybody else's.

    case      what a case is; ``Chapter`` registers them      server/   cases for servers, one file a chapter of the spec
    runner    which, in which order, who is to blame          target    a server by its address; ``Trial``, a case's world
    peer      one connection: say, hear, expect               judging   the rules that hold for every frame
    moves     what an honest client does, step by step        forge     frames that no honest encoder writes
    sample    a file to send                                  timing    how long to wait
    verdicts  how a case can end                              clauses   the spec's clauses, as package data
    selection -k, --failed, known failures                    adapter   the process that kills and inspects a server
    session   one call of the command                         report/   JSON lines, JUnit, HTML, the terminal

To examine something else than servers, write a ``runner.Subject`` and chapters of ``Side.CLIENT``; runner, verdicts,
selection and reports know no side.
"""
