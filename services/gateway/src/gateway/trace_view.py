"""What one photo's spans show: its part of a trace as a tree, and where the time went. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Literal, NamedTuple

from darkroom.contracts.base import Sha256
from darkroom.telemetry import names
from darkroom.topology import CONSUMED_BY, Node
from gateway.otlp import Span
from gateway.trace_models import Trace, TraceEvent, TraceLink, TracePart, TraceSpan, TraceSummary

Category = Literal["work", "wait", "batch"]
Role = Literal["upload", "original"]


@dataclass(eq=False)
class _Node:
    """A span in the tree that is shown."""

    span: Span
    category: Category
    children: list["_Node"] = field(default_factory=list)
    is_open: bool = False
    is_orphan: bool = False
    shift_ns: int = 0

    @property
    def start_ns(self) -> int:
        return self.span.start_ns + self.shift_ns

    @property
    def end_ns(self) -> int:
        return self.span.end_ns + self.shift_ns

    def walk(self, depth: int = 0) -> Iterator[tuple["_Node", int]]:
        """This node and all below with their levels, parents first. Not recursive: senders may nest as they like."""
        waiting = [(self, depth)]
        while waiting:
            node, level = waiting.pop()
            yield node, level
            waiting += [(child, level + 1) for child in reversed(node.children)]


def view(
    trace_id: str, role: Role, spans: Sequence[Span], linked: Sequence[Span], sha256: Sha256, now_ns: int | None = None
) -> Trace | None:
    """One photo's part of a trace; none when nothing in it is the photo's.

    `linked` are the spans of the traces that `links_of` named. `now_ns` is given for a photo in flight: what must be
    going on is then shown as open until that moment.
    """
    roots = _tree(spans, sha256)
    if not roots:
        return None
    for node, _ in _walk(roots):
        _right_clocks(node)
    if now_ns is not None:
        _open_ends(roots, now_ns)
    own = [node for node, _ in _walk(roots)]
    _attach(own, linked, sha256)
    for node, _ in _walk(roots):
        node.children.sort(key=lambda child: child.start_ns)
    roots.sort(key=lambda root: root.start_ns)
    start_ns = min(node.start_ns for node in own)
    return Trace(
        trace_id=trace_id,
        role=role,
        started_at=datetime.fromtimestamp(start_ns / 1e9, UTC),
        summary=_summary(own, start_ns),
        spans=[_shown(node, depth, start_ns) for node, depth in _walk(roots)],
    )


def links_of(spans: Sequence[Span], sha256: Sha256) -> list[str]:
    """The other traces that a photo's spans refer to: those of the batches that it shared."""
    own = {span.trace_id for span in spans}
    return sorted({link.trace_id for node, _ in _walk(_tree(spans, sha256)) for link in node.span.links} - own)


def _walk(roots: Iterable[_Node]) -> Iterator[tuple[_Node, int]]:
    for root in roots:
        yield from root.walk()


# --- What is the photo's ------------------------------------------------------------------------------------------


def _tree(spans: Sequence[Span], sha256: Sha256) -> list[_Node]:
    """The roots of this photo's spans. What belongs to no photo stays where it is above, below or beside them."""
    nodes = {span.span_id: _Node(span, "wait" if names.is_wait(span.name) else "work") for span in spans}
    roots = list[_Node]()
    for node in nodes.values():
        parent = nodes.get(node.span.parent_id or "")
        if parent is None:
            roots.append(node)
        else:
            parent.children.append(node)
    _break_circles(roots, nodes)
    verdicts = {root: _cut(root, sha256) for root in roots}
    photos = {photo for span in spans if (photo := _photo(span))}
    kept = [root for root, is_ours in verdicts.items() if is_ours or (is_ours is None and photos <= {sha256})]
    if not kept:
        # A duplicate whose upload brought other photos that were new: all that it has is the call itself.
        kept = [root for root in roots if root.span.kind == "server"]
    for root in kept:
        root.is_orphan = root.span.parent_id is not None and root.span.kind != "server"
    return kept


def _break_circles(roots: list[_Node], nodes: dict[str, _Node]) -> None:
    """Makes a root of one span in each circle of parents, which no honest sender makes."""
    reached = {node for node, _ in _walk(roots)}
    for node in nodes.values():
        if node not in reached:
            nodes[node.span.parent_id or ""].children.remove(node)
            roots.append(node)
            reached |= {below for below, _ in node.walk()}


def _photo(span: Span) -> str | None:
    value = span.attributes.get(names.IMAGE_SHA256)
    return value if isinstance(value, str) else None


def _cut(root: _Node, sha256: Sha256) -> bool | None:
    """Cuts off what is other photos'. True: something of this photo's is left; None: all of it is nobody's."""
    verdicts: dict[_Node, bool | None] = {}
    for node, _ in reversed(list(root.walk())):  # children first
        photo = _photo(node.span)
        below = [verdicts[child] for child in node.children]
        verdicts[node] = photo == sha256 if photo else True if True in below else False if False in below else None
        node.children = [child for child in node.children if verdicts[child] is not False]
    return verdicts[root]


# --- What is missing, or not as it was ----------------------------------------------------------------------------


def _right_clocks(node: _Node) -> None:
    """Moves what another machine did for a span, and seems to have begun before it, to the span's start."""
    for child in node.children:
        behind_ns = node.start_ns - child.start_ns
        if behind_ns > 0 and child.span.service != node.span.service:
            for below, _ in child.walk():
                below.shift_ns += behind_ns


def _attach(own: Sequence[_Node], linked: Sequence[Span], sha256: Sha256) -> None:
    """Hangs each batch below the span that refers to it, without what it did for others."""
    targets = {(span.trace_id, span.span_id): span for span in linked}
    children = defaultdict[tuple[str, str | None], list[Span]](list)
    for span in linked:
        children[span.trace_id, span.parent_id].append(span)
    for node in own:
        for link in node.span.links:
            target = targets.pop((link.trace_id, link.span_id), None)  # once, whoever else refers to it
            if target is not None:
                node.children.append(_batch(target, children, targets, node.shift_ns, sha256))


def _batch(
    span: Span,
    children: dict[tuple[str, str | None], list[Span]],
    left: dict[tuple[str, str], Span],
    shift_ns: int,
    sha256: Sha256,
) -> _Node:
    root = _Node(span, "batch", shift_ns=shift_ns)
    waiting = [root]
    while waiting:
        node = waiting.pop()
        for child in children.get((node.span.trace_id, node.span.span_id), ()):
            is_new = left.pop((child.trace_id, child.span_id), None) is not None
            if is_new and _photo(child) in (None, sha256):
                node.children.append(_Node(child, "batch", shift_ns=shift_ns))
        waiting += node.children
    return root


_SERVICES = {
    Node.THUMBNAILER: "thumbnailer",
    Node.THUMBNAILER_BULK: "thumbnailer",
    Node.EMBEDDER: "embedder",
    Node.FINALIZE: "scheduler",
    Node.MAINTENANCE: "scheduler",
}


def _open_ends(roots: Sequence[_Node], now_ns: int) -> None:
    """Adds what must be going on: spans tell only of what has ended.

    A message that was published and of which no delivery has ended waits, or is worked on since its wait ended.
    """
    nodes = [node for node, _ in _walk(roots)]
    generation = max((_generation(node) for node in nodes), default=0)
    if not any(node.span.name in (names.DISPATCH, names.WAIT_DISPATCH) for node in nodes):
        for node in nodes:
            if node.span.kind == "server":
                _add_open(node, names.WAIT_DISPATCH, "wait", "gateway", node.end_ns, now_ns)
    for node in nodes:
        queue = str(node.span.attributes.get(names.MESSAGING_DESTINATION))
        is_task = node.span.kind == "producer" and node.span.status != "error" and queue in CONSUMED_BY
        is_newest = _generation(node) in (0, generation)  # an older dispatch without an end was lost
        if not is_task or not is_newest or any(child.span.kind == "consumer" for child in node.children):
            continue
        service = _SERVICES[CONSUMED_BY[queue]]
        waits = [child.end_ns for child in node.children if child.category == "wait"]
        if waits:
            _add_open(node, f"{names.PROCESS} {queue}", "work", service, max(waits), now_ns)
        else:
            _add_open(node, f"{names.WAIT} {queue}", "wait", service, node.end_ns, now_ns)


def _add_open(parent: _Node, name: str, category: Category, service: str, start_ns: int, now_ns: int) -> None:
    span = Span(
        trace_id=parent.span.trace_id,
        span_id=f"{parent.span.span_id}-open",
        parent_id=parent.span.span_id,
        name=name,
        kind="internal",
        service=service,
        start_ns=start_ns,
        end_ns=max(start_ns, now_ns),
    )
    parent.children.append(_Node(span, category, is_open=True))


def _generation(node: _Node) -> int:
    value = node.span.attributes.get(names.GENERATION, 0)
    return value if isinstance(value, int) else 0


# --- What it comes to ---------------------------------------------------------------------------------------------


class _Interval(NamedTuple):
    start_ns: int
    end_ns: int


def _summary(nodes: Sequence[_Node], start_ns: int) -> TraceSummary:
    waited, held_back_ms = defaultdict[str, float](float), 0.0
    for node in nodes:
        if node.category == "wait":
            way, _, where = node.span.name.partition(" ")
            if way == names.DELAY:
                held_back_ms += _ms(node.end_ns - node.start_ns)
            else:
                waited[where] += _ms(node.end_ns - node.start_ns)
    worked = _worked(nodes)
    failed = {node for node in nodes if node.span.status == "error"}
    deliveries = [node.span.attributes for node in nodes if node.span.kind == "consumer"]
    return TraceSummary(
        total_ms=_ms(max(node.end_ns for node in nodes) - start_ns),
        waited_ms={where: round(waited_ms, 3) for where, waited_ms in waited.items()},
        held_back_ms=held_back_ms,
        worked_ms={service: _ms(sum(end - start for start, end in spent)) for service, spent in worked.items()},
        retries=sum(names.RETRY_NUMBER in attributes for attributes in deliveries),
        redeliveries=sum(attributes.get(names.IS_REDELIVERED) is True for attributes in deliveries),
        dispatches=sum(node.span.name == names.DISPATCH for node in nodes),
        errors=sum(failed.isdisjoint(node.children) for node in failed),  # not again for each span around one
        parts=_parts(nodes, worked, start_ns),
    )


def _worked(nodes: Sequence[_Node]) -> dict[str, list[_Interval]]:
    """When each service worked: inside of its spans, without the waits in them; in order, without overlap."""
    intervals = defaultdict[str, list[_Interval]](list)
    for node in nodes:
        if node.category != "work":
            continue
        # Spans inside of this one speak for themselves; what is left of it lies between its waits.
        at = node.start_ns
        waits = (child for child in node.children if child.category == "wait" and child.start_ns < node.end_ns)
        for wait in sorted(waits, key=lambda child: child.start_ns):
            intervals[node.span.service].append(_Interval(at, max(at, wait.start_ns)))
            at = max(at, wait.end_ns)
        intervals[node.span.service].append(_Interval(at, max(at, node.end_ns)))
    return {service: _merged(each) for service, each in intervals.items()}


def _merged(intervals: Iterable[_Interval]) -> list[_Interval]:
    merged = list[_Interval]()
    for interval in sorted(intervals):
        if merged and interval.start_ns <= merged[-1].end_ns:
            merged[-1] = _Interval(merged[-1].start_ns, max(merged[-1].end_ns, interval.end_ns))
        elif interval.end_ns > interval.start_ns:
            merged.append(interval)
    return merged


def _parts(nodes: Sequence[_Node], worked: dict[str, list[_Interval]], start_ns: int) -> list[TracePart]:
    """Every moment of the trace once: work before waiting, and of two at a time the one that goes on for longer."""
    claims = [(True, span.end_ns, span.start_ns, service) for service, spent in worked.items() for span in spent]
    claims += [
        (False, node.end_ns, node.start_ns, node.span.name)
        for node in nodes
        if node.category == "wait" and node.end_ns > node.start_ns
    ]
    moments = sorted({start_ns, *(claim[1] for claim in claims), *(claim[2] for claim in claims)})
    parts = list[TracePart]()
    for begin, end in pairwise(moments):
        best = max((claim for claim in claims if claim[2] <= begin and claim[1] >= end), default=None)
        category: Literal["work", "wait", "gap"] = "gap" if best is None else "work" if best[0] else "wait"
        name = "" if best is None else best[3]
        if parts and (parts[-1].category, parts[-1].name) == (category, name):
            parts[-1].duration_ms = _ms(end - start_ns) - parts[-1].start_ms
        else:
            parts.append(
                TracePart(category=category, name=name, start_ms=_ms(begin - start_ns), duration_ms=_ms(end - begin))
            )
    return parts


def _ms(nanoseconds: int) -> float:
    return round(nanoseconds / 1e6, 3)


def _shown(node: _Node, depth: int, start_ns: int) -> TraceSpan:
    span, attributes = node.span, node.span.attributes
    retry = attributes.get(names.RETRY_NUMBER)
    members = attributes.get(names.BATCH_SIZE, attributes.get(names.MESSAGING_BATCH_COUNT))
    return TraceSpan(
        id=span.span_id,
        trace_id=span.trace_id,
        parent_id=span.parent_id,
        depth=depth,
        name=span.name,
        category=node.category,
        kind=span.kind,
        service=span.service,
        start_ms=_ms(node.start_ns - start_ns),
        duration_ms=_ms(node.end_ns - node.start_ns),
        is_open=node.is_open,
        is_orphan=node.is_orphan,
        status=span.status,
        message=span.message or None,
        retry=retry if isinstance(retry, int) else None,
        is_redelivered=attributes.get(names.IS_REDELIVERED) is True,
        members=members if isinstance(members, int) else None,
        clock_shift_ms=_ms(node.shift_ns),
        attributes=dict(attributes),
        events=[
            TraceEvent(
                name=event.name,
                at_ms=_ms(event.time_ns + node.shift_ns - start_ns),
                attributes=dict(event.attributes),
            )
            for event in span.events
        ],
        links=[TraceLink(trace_id=link.trace_id, span_id=link.span_id) for link in span.links],
    )
