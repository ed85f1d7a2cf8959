"""The Flower ClientApp of a site: its requests, each answered by client.site through the outbox.

    query.ready      which phases are for this site, with how many examples, and which objects does it lack?
    query.objects    tensors of the coordinator's signed checkpoint, kept on the site's own disk by their hash
    query.release    a large object of an update that the site announced
    train            one round of a phase
    evaluate         figures on the site's validation and test people

and, under secure aggregation, in place of answers to the last two, the stages of a sum over sites (client.secure):

    query.advertise, query.share, query.input, query.agree, query.reveal

A site is a prepared store (read only), a folder of its own and the coordinator's public key. In a deployment they
come from the SuperNode's `--node-config 'store="/data/store" folder="/state" trust="/etc/pm1/coordinator.pub"'`,
with `tasks="tabular,other"` for tasks of installed packages, `ledger="/safe/ledger.jsonl"` for another place than
the folder, and `unprotected=true` to answer studies without differential privacy although there is a ledger. Secure
aggregation takes `identity="/etc/pm1/site.pem" peers="/etc/pm1/peers"`; such a site answers no study in the clear,
unless `unsecured=true` allows it.
Simulations build an app for their sites with `make_app`.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from client.site import LackingError, Site, SitePaths
from pm1_core.errors import ConfigError, PM1Error
from pm1_core.validate import refusal

if TYPE_CHECKING:
    from client.work import Work

# Flower reserves error codes below 200 for itself.
REFUSED = 210
FAILED = 220
LACKING = 230


def from_node_config(context: Context) -> SitePaths:
    """The paths that the SuperNode was started with."""
    for key in ("store", "folder", "trust"):
        if key not in context.node_config:
            remedy = 'start with store="/data/store" folder="/state" trust="/etc/pm1/coordinator.pub"'
            raise ConfigError(refusal("--node-config", f"key {key!r} is missing", remedy))
    config = context.node_config
    return SitePaths(
        store=str(config["store"]),
        folder=str(config["folder"]),
        trust=str(config["trust"]),
        tasks=tuple(name for name in str(config.get("tasks", "")).split(",") if name),
        alone=str(config.get("alone", True)).lower() == "true",
        threads=_threads(config.get("threads", 0)),
        ledger=str(config.get("ledger", "")),
        unprotected=_switch(config.get("unprotected", False)),
        identity=str(config.get("identity", "")),
        peers=str(config.get("peers", "")),
        unsecured=_switch(config.get("unsecured", False)),
    )


def _switch(value: object) -> bool:
    return str(value).lower() == "true"


def _threads(value: object) -> int:
    if not str(value).isdecimal():
        remedy = "give a whole number of cores, 0 leaves it to torch"
        raise ConfigError(refusal("--node-config, threads", f"found {value!r}", remedy))
    return int(str(value))


def make_app(locate: Callable[[Context], SitePaths]) -> ClientApp:
    """A ClientApp whose sites are found by `locate`."""
    app = ClientApp()

    def answer(
        message: Message, context: Context, action: Callable[[SitePaths, RecordDict], RecordDict]
    ) -> Message:
        try:
            return Message(action(locate(context), message.content), reply_to=message)
        except LackingError as error:
            return Message(Error(LACKING, str(error)), reply_to=message)
        except PM1Error as error:
            return Message(Error(REFUSED, str(error)), reply_to=message)
        except Exception as error:  # a site that fails must say so, not disappear
            log = Path(locate(context).folder) / "failures.log"
            what = type(error).__name__
            if isinstance(error, OSError) and error.strerror:
                what = error.strerror  # "No space left on device"; which file it was stays here
            reason = f"{what} (details stay at the site)"
            try:
                log.parent.mkdir(parents=True, exist_ok=True)
                with log.open("a") as stream:
                    stream.write(traceback.format_exc() + "\n")
            except OSError as unwritten:  # a full disk is often the very reason
                reason += f"; its log cannot be written ({unwritten.strerror})"
            return Message(Error(FAILED, reason), reply_to=message)

    @app.query("objects")
    def objects(message: Message, context: Context) -> Message:
        return answer(message, context, lambda paths, content: Site(paths, content).receive())

    @app.query("release")
    def release(message: Message, context: Context) -> Message:
        return answer(message, context, lambda paths, content: Site(paths, content).release())

    # The stages of a secure sum.

    @app.query("advertise")
    def advertise(message: Message, context: Context) -> Message:
        return answer(message, context, lambda paths, content: _stage(paths, content, "advertise"))

    @app.query("share")
    def share(message: Message, context: Context) -> Message:
        return answer(message, context, lambda paths, content: _stage(paths, content, "share"))

    @app.query("input")
    def masked(message: Message, context: Context) -> Message:
        return answer(message, context, lambda paths, content: _stage(paths, content, "input"))

    @app.query("agree")
    def agree(message: Message, context: Context) -> Message:
        return answer(message, context, lambda paths, content: _stage(paths, content, "agree"))

    @app.query("reveal")
    def reveal(message: Message, context: Context) -> Message:
        return answer(message, context, lambda paths, content: _stage(paths, content, "reveal"))

    @app.query("ready")
    def ready(message: Message, context: Context) -> Message:
        return answer(message, context, lambda paths, content: _work(paths, content).ready())

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answer(message, context, lambda paths, content: _work(paths, content).train())

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return answer(message, context, lambda paths, content: _work(paths, content).evaluate())

    return app


def _stage(paths: SitePaths, content: RecordDict, stage: str) -> RecordDict:
    # Imported here: its libraries take a second, and moving objects does not need them.
    from client.secure import SecureSite

    return SecureSite(paths, content).stage(stage)


def _work(paths: SitePaths, content: RecordDict) -> Work:
    # Imported here: torch takes seconds, and Flower starts a process for each message.
    from client.work import Work

    return Work(paths, content, passing=True)


app = make_app(from_node_config)
