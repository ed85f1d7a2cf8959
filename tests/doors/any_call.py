"""Bytes that are sometimes close to a call of Flower's Fleet API."""

from __future__ import annotations

from hypothesis import strategies as st
from pretend import NODE, RUN

from strategies import fleet


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, bytes]:
    """A call's name, and what is sent."""
    call = draw(st.sampled_from(sorted(fleet.CALLS.values(), key=lambda call: call.name)))
    message = call.request()
    for name, of in message.DESCRIPTOR.fields_by_name.items():
        if name == "node" and draw(st.booleans()):
            message.node.node_id = draw(st.sampled_from([NODE, 0, 1]))
        elif name in ("node_id", "run_id") and draw(st.booleans()):
            setattr(message, name, draw(st.sampled_from([NODE, RUN, 0])))
        elif of.type == of.TYPE_STRING and not of.is_repeated and draw(st.booleans()):
            setattr(message, name, draw(st.text(max_size=70)))
        elif of.type == of.TYPE_BYTES and draw(st.booleans()):
            setattr(message, name, draw(st.binary(max_size=70)))
        elif name == "messages_list" and draw(st.booleans()):
            given = message.messages_list.add().metadata
            given.run_id = RUN
            given.reply_to_message_id = draw(st.text(max_size=70))
            given.ttl = draw(st.floats())
            message.message_object_trees.add().object_id = draw(st.text(max_size=70))
    body = message.SerializeToString(deterministic=True)
    return call.name, draw(
        st.sampled_from([body, body + draw(st.binary(max_size=8)), draw(st.binary(max_size=80))])
    )
