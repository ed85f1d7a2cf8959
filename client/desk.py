"""What a site's door knows of its messages: which came in, which answers have tickets, which have left.

A message that was let in may be answered once: by a reply to it, from this node to who asked, whose objects are all
in one ticket. The same reply may be sent again, as Flower does after a broken connection. All of it is in one file,
so that a door that was restarted while a site trained lets the answer pass.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from flwr.proto import message_pb2
from flwr.supercore.constant import HEAD_BODY_DIVIDER, HEAD_VALUE_DIVIDER
from google.protobuf.message import DecodeError

from client.tickets import Ticket, error_digest
from pm1_core import atomic
from pm1_core.errors import InputError, PrivacyError, StateError
from pm1_core.validate import refusal
from strategies.fleet import tree_ids

_CLOCKS = 60.0  # seconds by which two processes of one machine may differ
_KEPT = 100  # messages that were answered, whose answers may be pushed again


@dataclass(frozen=True)
class Came:
    """A message that was let in.

    study: approval of its run; since: when it came, seconds; objects: ids of its tree; metadata: as it came
    tickets: of answers to it, oldest first; sent: id of the reply that left, "" before
    pushed: ids of that reply's objects; session: under which the coordinator takes them
    """

    study: str
    since: float
    objects: tuple[str, ...]
    metadata: Mapping[str, Any]
    tickets: tuple[Ticket, ...] = ()
    sent: str = ""
    pushed: tuple[str, ...] = ()
    session: str = ""


@dataclass
class Desk:
    """The messages of one node, kept in `file`. node: its id, 0 before it is known"""

    file: Path
    node: int = 0
    came: dict[str, Came] = field(default_factory=dict)

    @staticmethod
    def at(file: Path) -> Desk:
        """What was kept in `file`; nothing if there is none. Raises StateError if it is damaged."""
        if not file.exists():
            return Desk(file)
        content = atomic.read_json(file)
        came = {}
        try:
            for name, item in content["came"].items():
                tickets = tuple(Ticket.of(ticket) for ticket in item.pop("tickets"))
                for key in ("objects", "pushed"):
                    item[key] = tuple(item[key])
                came[name] = Came(**item, tickets=tickets)
            return Desk(file, int(content["node"]), came)
        except (AttributeError, KeyError, TypeError, ValueError, InputError):
            remedy = "remove it: answers that are under way will be stopped, and asked for again"
            raise StateError(refusal(file, "it is not what the door wrote", remedy)) from None

    def is_node(self, node: int) -> None:
        """Note the id that the coordinator gave this site's node."""
        if node != self.node:
            self.node, self.came = node, {}
            self._save()

    def require_node(self, node: int | None) -> None:
        """Raise PrivacyError unless a call is from this site's own node."""
        if not self.node or node != self.node:
            raise _stopped("call", "it is not in the name of this site's node", "start the SuperNode again")

    def let_in(self, message: message_pb2.Message, tree: message_pb2.ObjectTree, study: str) -> None:
        """Note a message for this site. Raises PrivacyError if it is for another node, or no instruction."""
        given = message.metadata
        objects = tuple(dict.fromkeys(tree_ids(tree)))
        if given.dst_node_id != self.node or given.reply_to_message_id or tree.object_id != given.message_id:
            raise _stopped("message", "it is not an instruction for this node", "send each site its own")
        self._forget()
        self.came[given.message_id] = Came(study, time.time(), objects, _metadata(given))
        self._save()

    def note_root(self, object_id: str, content: bytes) -> None:
        """Take what the first object of a message says of it beyond what came with it: tasks, by their numbers.

        Raises PrivacyError if it is another object than the message named.
        """
        came = self.came[object_id]
        head, _, body = content.partition(HEAD_BODY_DIVIDER)
        message = message_pb2.Message()
        try:
            message.ParseFromString(body)
        except DecodeError:
            message.Clear()
        if hashlib.sha256(content).hexdigest() != object_id or not head.startswith(b"Message "):
            raise _stopped("message", "its first object is not the one it named", "ask the coordinator")
        tasks = {
            name: value for name, value in _metadata(message.metadata).items() if name.endswith("_task_id")
        }
        self.came[object_id] = replace(came, metadata={**came.metadata, **tasks})
        self._save()

    def answered(self, run: int, reply_to: str) -> Came:
        """The message that an answer is for. Raises PrivacyError if there is none."""
        came = self.came.get(reply_to)
        if came is None or came.metadata["run_id"] != run:
            raise _stopped("answer", "it answers no message that was let in", "wait for a message")
        return came

    def add(self, ticket: Ticket) -> None:
        """Keep a ticket. Raises PrivacyError if its message is unknown, or another answer to it has left."""
        came = self.answered(ticket.run, ticket.reply_to)
        if came.sent:
            raise _stopped("ticket", "an answer to this message has left already", "wait for the next one")
        self.came[ticket.reply_to] = replace(came, tickets=(*came.tickets[-3:], ticket))
        self._save()

    def ticket_for(self, message: message_pb2.Message, tree: message_pb2.ObjectTree) -> tuple[Ticket, bool]:
        """The ticket with which a reply may leave, and whether it left before.

        Raises PrivacyError if the reply is not a plain answer to a message that was let in, or has no ticket.
        """
        given = message.metadata
        came = self.answered(given.run_id, given.reply_to_message_id)
        _require_plain(message, tree, came)
        content = [name for child in tree.children for name in tree_ids(child)]
        error = error_digest(message.error.code, message.error.reason) if message.HasField("error") else ""
        if came.sent and came.sent != tree.object_id:
            raise _stopped("answer", "another answer to this message has left already", "send that one again")
        for ticket in reversed(came.tickets):
            if error == ticket.error and set(content) == set(ticket.objects):
                if not error and content[0] != ticket.objects[0]:
                    continue
                return ticket, bool(came.sent)
        raise _stopped("answer", "it has no ticket", "let answers leave through the outbox only")

    def leaves(self, message: message_pb2.Message, tree: message_pb2.ObjectTree) -> None:
        """Note that a reply is about to leave."""
        name = message.metadata.reply_to_message_id
        objects = tuple(dict.fromkeys(tree_ids(tree)))
        self.came[name] = replace(self.came[name], sent=tree.object_id, pushed=objects)
        self._save()

    def taken(self, reply_to: str, session: str) -> None:
        """Note the session in which the coordinator takes the objects of an answer."""
        self.came[reply_to] = replace(self.came[reply_to], session=session)
        self._save()

    def require_pushed(self, run: int | None, object_id: str, session: str) -> Came:
        """The message to whose answer an object belongs. Raises PrivacyError if no answer that left has it."""
        for came in self.came.values():
            if (came.metadata["run_id"], came.session) == (run, session) and object_id in came.pushed:
                return came
        raise _stopped("object", "no answer that left has it", "send the answer first")

    def require_came(self, run: int | None, object_id: str, whole: bool = False) -> Came:
        """The message to which an object belongs, or which it is (`whole`). Raises PrivacyError if none."""
        for name, came in self.came.items():
            if came.metadata["run_id"] == run and (object_id == name if whole else object_id in came.objects):
                return came
        raise _stopped("object", "no message that was let in has it", "take what was sent to this site")

    def _forget(self) -> None:
        """Leave out messages that nobody waits for any more."""
        now = time.time()
        for name, came in list(self.came.items()):
            over = came.metadata["created_at"] + came.metadata["ttl"] < now
            if over or (came.sent and len(self.came) > _KEPT):
                del self.came[name]

    def _save(self) -> None:
        came = {name: asdict(item) for name, item in self.came.items()}
        atomic.write_json(self.file, {"node": self.node, "came": came})


def root_bytes(message: message_pb2.Message, children: Iterable[str]) -> bytes:
    """The object that Flower makes of a message, its content left out: metadata, an error, ids of children."""
    bare = message_pb2.Message()
    bare.metadata.CopyFrom(message.metadata)
    bare.metadata.message_id = ""
    if message.HasField("error"):
        bare.error.CopyFrom(message.error)
    body = bare.SerializeToString(deterministic=True)
    head = HEAD_VALUE_DIVIDER.join(("Message", ",".join(children), str(len(body))))
    return b"".join((head.encode(), HEAD_BODY_DIVIDER, body))


def _require_plain(message: message_pb2.Message, tree: message_pb2.ObjectTree, came: Came) -> None:
    """Raise PrivacyError unless a reply's metadata follow from the message, and its root has nothing else."""
    given, asked = message.metadata, came.metadata
    expected = {
        "src_node_id": asked["dst_node_id"],
        "dst_node_id": asked["src_node_id"],
        "message_type": asked["message_type"],
        "group_id": asked["group_id"],
        "src_task_id": asked.get("dst_task_id"),
        "dst_task_id": asked.get("src_task_id"),
    }
    found = _metadata(given)
    for key, value in expected.items():
        if found.get(key) != value:
            raise _stopped("answer", f"its {key} does not follow from the message", "answer with reply_to")
    now, until = time.time(), asked["created_at"] + asked["ttl"]
    if not came.since - _CLOCKS <= given.created_at <= now + _CLOCKS:
        raise _stopped("answer", "its time is not that of the answer", "set the clock")
    if not abs(given.created_at + given.ttl - until) < 1.0:
        raise _stopped("answer", "its ttl does not follow from the message", "leave it to Flower")
    if message.content.ByteSize() or message.HasField("error") == bool(tree.children):
        raise _stopped("answer", "it carries content beside its objects", "leave it to Flower")
    if len(tree.children) > 1 or given.message_id != tree.object_id:
        raise _stopped("answer", "its objects are not those of one message", "leave it to Flower")
    root = root_bytes(message, [child.object_id for child in tree.children])
    if hashlib.sha256(root).hexdigest() != tree.object_id:
        raise _stopped("answer", "its first object is not made of its metadata", "leave it to Flower")


def _metadata(given: message_pb2.Metadata) -> dict[str, Any]:
    """Fields that are set, by name."""
    return {
        name: getattr(given, name)
        for name, of in given.DESCRIPTOR.fields_by_name.items()
        if of.containing_oneof is None or given.HasField(name)
    }


def _stopped(where: str, found: str, remedy: str) -> PrivacyError:
    return PrivacyError(refusal(f"{where} at the site's door", found, remedy))
