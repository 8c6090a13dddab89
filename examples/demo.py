"""A demo in the terminal: a card is not charged twice, on real servers. Run it with ``tox -e demo``.

It uses the payments API on FastAPI; ``tox -e demo -- django`` uses the one on Django, and ``flask`` and ``starlette``
theirs. It checks every statement that it prints, and exits with 1 if one is not true. It leaves nothing behind: the
servers are stopped, the databases are in a temporary folder.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from examples.client import Client
from examples.evidence import read_journal
from examples.listing import Listing, functions
from examples.provider import Line, PaymentProvider
from examples.shop import Shop
from examples.terminal import Terminal
from examples.workers import Reply, Worker, WorkerFailed

LEASE = 3.0
LATENCY = 0.8
PATIENCE = 12.0

MUGS = {"sku": "mug", "quantity": 2, "card": "tok_anna"}
SHIRT = {"sku": "shirt", "quantity": 1, "card": "tok_ben"}
SHIRTS = {"sku": "shirt", "quantity": 3, "card": "tok_carla"}


class Application(NamedTuple):
    """A payments API. ``functions``: those that the demo prints."""

    title: str
    module: str
    functions: tuple[str, ...]

    def listings(self) -> list[Listing]:
        """The code that the demo prints."""
        return functions(f"{self.module.replace('.', '/')}.py", self.functions)


#: by the name that ``tox -e demo -- NAME`` takes
APPLICATIONS = {
    "fastapi": Application("FastAPI on uvicorn", "examples.payments_fastapi", ("create_charge", "charge_card")),
    "starlette": Application("Starlette on uvicorn", "examples.payments_starlette", ("create_charge",)),
    "django": Application("Django on waitress", "examples.payments_django", ("checkout",)),
    "flask": Application("Flask on waitress", "examples.payments_flask", ("create_charge",)),
}


class NotTrue(Exception):
    """A statement of the demo is not true."""


class Story:
    """The shop's two workers, the provider's book, and the scenes of the demo."""

    def __init__(
        self, terminal: Terminal, application: Application, folder: Path, first: Worker, doomed: Worker
    ) -> None:
        self._terminal = terminal
        self._listings = application.listings()
        self._folder = folder
        self._first = first
        self._doomed = doomed
        self._shop = Shop(folder)
        self._provider = PaymentProvider(folder)

    def run(self) -> None:
        """Run all scenes. Raises ``NotTrue``."""
        self._application()
        anna, ben, carla = clients = [Client(self._terminal) for _ in range(3)]
        self._first_request(anna)
        self._replay(anna)
        self._mismatch(anna)
        self._in_flight(ben)
        self._crash(carla)
        self._book(sum(client.sent for client in clients))

    def _application(self) -> None:
        self._terminal.chapter("The application")
        self._terminal.narrate(
            "POST /charges reserves goods, charges a card and writes a receipt. Each of the three is a stage: once it "
            "is done, it is on record."
        )
        self._terminal.listings(self._listings)

    def _first_request(self, anna: Client) -> None:
        self._terminal.chapter("1. Anna buys two mugs")
        self._terminal.narrate("Her client makes up a key for this one purchase, and sends it along.")
        reply = anna.post(self._first, MUGS)
        self._expect(_status(reply) == 201, "201: the card is charged")
        self._response = reply

    def _replay(self, anna: Client) -> None:
        self._terminal.chapter("2. The response got lost on the way, so her client sends the request again")
        reply = anna.post(self._first, MUGS)
        self._expect(_status(reply) == 201 and _is_replay(reply), "201, and Idempotent-Replayed: true")
        same = reply is not None and self._response is not None and reply.body == self._response.body
        self._expect(same, "the same response, byte for byte")
        self._expect(len(self._lines("tok_anna")) == 1, "the payment provider was asked once")

    def _mismatch(self, anna: Client) -> None:
        self._terminal.chapter("3. A bug in her client sends another order with the same key")
        reply = anna.post(self._first, {**MUGS, "quantity": 20})
        self._expect(_status(reply) == 422, "422: a key belongs to one request")
        self._expect(len(self._lines("tok_anna")) == 1, "nothing was charged for it")

    def _in_flight(self, ben: Client) -> None:
        self._terminal.chapter("4. Ben clicks twice")
        self._terminal.narrate(
            "The provider is slow. The second click comes while the first one is still being worked on."
        )
        with ThreadPoolExecutor(1) as executor:
            ben.show(self._first, SHIRT)
            first_click = executor.submit(ben.send, self._first, SHIRT)
            begun = _within(PATIENCE, lambda: any(r.sku == "shirt" for r in self._shop.reservations()))
            print("    (no response yet)\n")
            second = ben.post(self._first, SHIRT)
            self._expect(begun and _status(second) == 409, "409 for the second click, with Retry-After")
            first = first_click.result()
        self._terminal.narrate("And here is the response to the first click:")
        self._terminal.reply(first)
        self._expect(_status(first) == 201, "201 for the first click")
        self._expect(len(self._lines("tok_ben")) == 1, "the payment provider was asked once")

    def _crash(self, carla: Client) -> None:
        self._terminal.chapter("5. Carla's worker dies between two stages")
        self._terminal.narrate(
            "Her request goes to another worker of the shop. It reserves the shirts, charges the card, and is killed "
            f"with SIGKILL before it writes the receipt: {self._place_of('write_receipt')}."
        )
        reply = carla.post(self._doomed, SHIRTS)
        self._expect(reply is None and self._doomed.wait_until_killed(), "no response: the worker is dead")
        self._expect(len(self._lines("tok_carla")) == 1, "but the card is charged")
        self._expect(len(self._shop.receipts()) == 2, "and there is no receipt")
        self._resume(carla)

    def _resume(self, carla: Client) -> None:
        self._terminal.narrate(
            "Her client tries again with the same key, and reaches a worker that is alive. Whether the dead one is "
            f"dead or slow, nobody can know before its lease ends: {LEASE:.0f} seconds in this demo."
        )
        retry = carla.post(self._first, SHIRTS)
        self._expect(_status(retry) == 409, "409 while the lease lasts")
        self._terminal.narrate("She does as Retry-After says, again and again.")
        response = self._obedient_retry(carla, retry)
        carla.show(self._first, SHIRTS)
        self._terminal.reply(response)
        self._expect(_status(response) == 201 and not _is_replay(response), "201: the request was resumed, and is done")
        self._show_who_did_what()

    def _obedient_retry(self, client: Client, reply: Reply | None) -> Reply | None:
        deadline = time.monotonic() + PATIENCE
        while _status(reply) == 409 and time.monotonic() < deadline:
            assert reply is not None
            pause = int(reply.header("Retry-After") or 1)
            print(f"    409, Retry-After: {pause}")
            time.sleep(pause)
            reply = client.send(self._first, SHIRTS)
        print()
        return reply

    def _show_who_did_what(self) -> None:
        workers = {self._doomed.pid: "killed", self._first.pid: "alive"}
        done = [(line["effect"], workers[line["worker"]]) for line in read_journal(self._folder)][-3:]
        self._expect(
            done == [("reserve", "killed"), ("charge", "killed"), ("receipt", "alive")],
            f"worker {self._doomed.pid} reserved and charged, worker {self._first.pid} wrote the receipt: "
            "no stage ran twice",
        )

    def _book(self, requests: int) -> None:
        self._terminal.chapter("6. The payment provider's book")
        self._terminal.narrate(
            f"The shop got {requests} requests with three keys. This is what the provider saw of them:"
        )
        rows = [["request", "card", "amount", "outcome", "key"]]
        lines = self._provider.lines()
        rows += [[str(line.number), line.card, f"{line.amount / 100:.2f}", line.outcome, line.key] for line in lines]
        self._terminal.table(rows)
        for name in ("anna", "ben", "carla"):
            outcomes = [line.outcome for line in self._lines(f"tok_{name}")]
            self._expect(outcomes == ["charged"], f"{name.capitalize()}'s card was charged ONCE")
        stock = (self._shop.available("mug"), self._shop.available("shirt"))
        self._expect(stock == (98, 96), "2 mugs and 4 shirts have left the stock")

    def _place_of(self, call: str) -> str:
        """The line of a call in the code that the demo has printed."""
        places = [place for listing in self._listings for place in listing.places_of(call)]
        return places[0]

    def _lines(self, card: str) -> list[Line]:
        return [line for line in self._provider.lines() if line.card == card]

    def _expect(self, true: bool, sentence: str) -> None:
        if not true:
            raise NotTrue(sentence)
        self._terminal.proven(sentence)


def _status(reply: Reply | None) -> int:
    return reply.status if reply is not None else 0


def _is_replay(reply: Reply | None) -> bool:
    return reply is not None and reply.header("Idempotent-Replayed") == "true"


def _within(seconds: float, holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _scheme(settings: dict[str, str]) -> str:
    return settings["IDEMPOTENCY_BACKEND"].partition(":")[0]


def run(application: Application, backend: str | None, module: str | None = None) -> int:
    """Run the demo for an application; the exit status. ``module``: what to serve in its place."""
    terminal = Terminal()
    began = time.monotonic()
    served = module or application.module
    with ExitStack() as stack:
        # On a platform that keeps files of a killed process open for a moment, that failure is ignored.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        settings = {
            "IDEMPOTENCY_BACKEND": backend or f"sqlite:///{folder}/idempotency.db?timeout=0.9",
            "IDEMPOTENCY_LEASE": str(LEASE),
            "PROVIDER_LATENCY": str(LATENCY),
        }
        first = stack.enter_context(Worker([served], folder, **settings))
        doomed = stack.enter_context(Worker([served], folder, **settings, SHOP_DIE="before-receipt"))
        try:
            first.wait_until_it_serves()
            doomed.wait_until_it_serves()
            below = f"{module or application.title}: two workers, on ports {first.port} and {doomed.port}"
            below += f"; records in {_scheme(settings)}"
            terminal.title("The story of a card that is not charged twice", below)
            Story(terminal, application, folder, first, doomed).run()
        except NotTrue as sentence:
            terminal.broken(f"NOT TRUE: {sentence}")
            return 1
        except WorkerFailed as error:
            terminal.broken(str(error))
            return 1
    print(terminal.style(f"\nEvery sentence was checked. {time.monotonic() - began:.0f} seconds.\n", "bold"))
    return 0


def main() -> int:
    """The command line: ``python -m examples.demo [--backend URL] [--serve MODULE] [framework]``."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument(
        "framework",
        nargs="?",
        choices=list(APPLICATIONS),
        default="fastapi",
        help="whose payments API to serve (default: %(default)s)",
    )
    parser.add_argument("--backend", metavar="URL", help="a backend instead of a new SQLite file")
    parser.add_argument("--serve", metavar="MODULE", help="a module to serve instead of the framework's payments API")
    arguments = parser.parse_args()
    try:
        return run(APPLICATIONS[arguments.framework], arguments.backend, arguments.serve)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
