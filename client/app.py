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
unless `unsecured=true` allows it. With `door="127.0.0.1:9444"` every answer gets a ticket there before it leaves,
and `door_secret` names the file of what is shown for that.
A machine's own are `batch_size="genotype:16,fusion:64"`, `precision="bfloat16"` and, with four GPUs, `processes=4`.
Simulations build an app for their sites with `make_app`.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from client.counter import Counter
from client.site import LackingError, Site, SitePaths
from pm1_core import logs
from pm1_core.errors import ConfigError, PM1Error
from pm1_core.validate import refusal

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
        threads=_cores(config.get("threads", 0), "threads", "cores, 0 leaves it to torch"),
        ledger=str(config.get("ledger", "")),
        unprotected=_switch(config.get("unprotected", False)),
        identity=str(config.get("identity", "")),
        peers=str(config.get("peers", "")),
        unsecured=_switch(config.get("unsecured", False)),
        door=str(config.get("door", "")),
        door_secret=str(config.get("door_secret", "")),
        batch_size=str(config.get("batch_size", "")),
        precision=str(config.get("precision", "")),
        processes=str(config.get("processes", "")),
        cache=str(config.get("cache", "")),
    )


def _switch(value: object) -> bool:
    return str(value).lower() == "true"


def _cores(value: object, key: str, what: str) -> int:
    if not str(value).isdecimal():
        remedy = f"give a whole number of {what}"
        raise ConfigError(refusal(f"--node-config, {key}", f"found {value!r}", remedy))
    return int(str(value))


Action = Callable[[SitePaths, RecordDict, Counter], RecordDict]


def make_app(locate: Callable[[Context], SitePaths]) -> ClientApp:
    """A ClientApp whose sites are found by `locate`."""
    app = ClientApp()

    def answer(message: Message, context: Context, action: Action) -> Message:
        try:
            paths = locate(context)
        except PM1Error as error:
            return Message(Error(REFUSED, str(error)), reply_to=message)
        counter = Counter(paths.door, message.metadata.run_id, message.metadata.message_id, paths.door_secret)
        reply = _answered(paths, message, counter, action)
        try:
            counter.ticket(reply)
        except PM1Error as error:
            reply = Message(Error(REFUSED, str(error)), reply_to=message)
            with suppress(PM1Error):  # without a ticket the door stops it
                counter.ticket(reply)
        return reply

    @app.query("objects")
    def objects(message: Message, context: Context) -> Message:
        return answer(message, context, _receive)

    @app.query("release")
    def release(message: Message, context: Context) -> Message:
        return answer(message, context, _release)

    # The stages of a secure sum.

    @app.query("advertise")
    def advertise(message: Message, context: Context) -> Message:
        return answer(message, context, _stage("advertise"))

    @app.query("share")
    def share(message: Message, context: Context) -> Message:
        return answer(message, context, _stage("share"))

    @app.query("input")
    def masked(message: Message, context: Context) -> Message:
        return answer(message, context, _stage("input"))

    @app.query("agree")
    def agree(message: Message, context: Context) -> Message:
        return answer(message, context, _stage("agree"))

    @app.query("reveal")
    def reveal(message: Message, context: Context) -> Message:
        return answer(message, context, _stage("reveal"))

    @app.query("ready")
    def ready(message: Message, context: Context) -> Message:
        return answer(message, context, _work("ready"))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answer(message, context, _work("train"))

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return answer(message, context, _work("evaluate"))

    return app


def _answered(paths: SitePaths, message: Message, counter: Counter, action: Action) -> Message:
    try:
        return Message(action(paths, message.content, counter), reply_to=message)
    except LackingError as error:
        return Message(Error(LACKING, str(error)), reply_to=message)
    except PM1Error as error:
        return Message(Error(REFUSED, str(error)), reply_to=message)
    except Exception as error:  # a site that fails must say so, not disappear
        log = Path(paths.folder) / "failures.log"
        what = type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            what = error.strerror  # "No space left on device"; which file it was stays here
        reason = f"{what} (details stay at the site)"
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            logs.turned(log)
            with log.open("a") as stream:
                stream.write(traceback.format_exc() + "\n")
        except OSError as unwritten:  # a full disk is often the very reason
            reason += f"; its log cannot be written ({unwritten.strerror})"
        return Message(Error(FAILED, reason), reply_to=message)


def _receive(paths: SitePaths, content: RecordDict, counter: Counter) -> RecordDict:
    return Site(paths, content, counter=counter).receive()


def _release(paths: SitePaths, content: RecordDict, counter: Counter) -> RecordDict:
    return Site(paths, content, counter=counter).release()


def _stage(stage: str) -> Action:
    def action(paths: SitePaths, content: RecordDict, counter: Counter) -> RecordDict:
        # Imported here: its libraries take a second, and moving objects does not need them.
        from client.secure import SecureSite

        return SecureSite(paths, content, counter=counter).stage(stage)

    return action


def _work(kind: str) -> Action:
    def action(paths: SitePaths, content: RecordDict, counter: Counter) -> RecordDict:
        # Imported here: torch takes seconds, and Flower starts a process for each message.
        from client.work import Work

        work = Work(paths, content, passing=True, counter=counter)
        return {"ready": work.ready, "train": work.train, "evaluate": work.evaluate}[kind]()

    return action


app = make_app(from_node_config)
